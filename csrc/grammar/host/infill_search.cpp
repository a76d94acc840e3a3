#include "infill_search.h"

#include <algorithm>
#include <cstring>

namespace tokops::grammar::infill {

Grammar::Grammar(Langs& langs, Cfg cfg, std::vector<Lang> terminals_of, Lexer lexer,
                 const std::map<std::string, std::string>& not_before, int32_t between)
    : source(std::move(cfg)),
      terminals(compile_terminals(langs, std::move(terminals_of), lexer, not_before, between)) {
  std::vector<uint8_t> alive, nullable;
  for (const Terminal& t : terminals.all) {
    alive.push_back(t.alive());
    nullable.push_back(t.nullable());
  }
  normal = normal_form(source, alive, nullable);
  if (normal.productions.empty()) throw GrammarError("start", "", "the start rule derives no text");
  units.resize(normal.symbols);
  lefts.resize(normal.symbols);
  rights.resize(normal.symbols);
  for (const auto& [head, body] : normal.productions) {
    if (body.empty()) empty.push_back(head);
    if (body.size() == 1) units[body[0]].push_back(head);
    if (body.size() == 2) {
      lefts[body[0]].push_back({head, body[1]});
      rights[body[1]].push_back({head, body[0]});
    }
  }
}

uint64_t* RowPool::take() {
  if (!free_.empty()) {
    uint64_t* row = free_.back();
    free_.pop_back();
    std::memset(row, 0, size_t(words_) * sizeof(uint64_t));
    return row;
  }
  if (used_ == kChunk) {
    if ((chunks_.size() + 1) * kChunk * words_ * sizeof(uint64_t) > kMostBytes)
      throw OutOfEffort{"memory"};
    chunks_.push_back(std::make_unique<uint64_t[]>(kChunk * words_));
    used_ = 0;
  }
  return chunks_.back().get() + used_++ * words_;
}

void Search::drop(Text::State& s) {
  for (uint64_t* row : s.rows) {
    if (row) pool_->give(row);
  }
  s.rows.clear();
  if (s.id >= 0) {
    state_of_[s.id] = -1;
    free_ids_.push_back(s.id);
    s.id = -1;
  }
}

void Search::forget() {
  text_ = Text(grammar_.terminals);
  pool_ = std::make_unique<RowPool>(pool_->words());
  state_of_.clear();
  free_ids_.clear();
}

bool Search::completable(const std::vector<Part>& parts, Effort& effort) {
  try {
    text_.set(parts, [&](Text::State& s) { drop(s); });
    text_.explore(effort);
    if (!text_.at(text_.start()).live) return false;
    fill(effort);
  } catch (...) {
    forget();
    throw;
  }
  bool found = false;
  each(grammar_.normal.start, text_.start(), [&](int32_t to) { found |= text_.final(to); });
  return found;
}

bool Search::fact(int32_t symbol, int32_t from, int32_t to) const {
  const Text::State& s = text_.at(from);
  const int32_t id = text_.at(to).id;
  return id >= 0 && !s.rows.empty() && s.rows[symbol] && s.rows[symbol][id >> 6] >> (id & 63) & 1;
}

void Search::fill(Effort& effort) {
  const auto wanted = [&](int32_t s) { return text_.reached(s) && text_.at(s).live; };
  size_t live = 0;
  for (int32_t s = 0; s < text_.states(); ++s) live += wanted(s) && text_.at(s).id < 0;
  const size_t bits = state_of_.size() - free_ids_.size() + live;
  if (bits > size_t(pool_->words()) * 64) {
    // Longer rows: those there are would have to be copied; it is as quick to fill them again.
    int32_t words = pool_->words();
    while (bits > size_t(words) * 64) words *= 2;
    for (int32_t s = 0; s < text_.states(); ++s) {
      text_.at(s).rows.clear();
      text_.at(s).id = -1;
    }
    state_of_.clear();
    free_ids_.clear();
    pool_ = std::make_unique<RowPool>(words);
  }
  std::vector<int32_t> states;
  const int32_t width = text_.follows();
  for (int32_t s = 0; s < text_.states(); s += width) {
    states.clear();
    for (int32_t f = 0; f < width; ++f) {
      if (wanted(s + f) && text_.at(s + f).id < 0) states.push_back(s + f);
    }
    if (!states.empty()) fill_place(states, effort);
  }
}

// The rows of states of one place, which may lead to each other: facts that are new are joined with
// all there are, until none is new. Heads are taken in the order of their numbers, in which most
// are complete when their turn comes.
void Search::fill_place(const std::vector<int32_t>& states, Effort& effort) {
  const int32_t words = pool_->words(), symbols = grammar_.normal.symbols;
  const size_t count = states.size();
  struct Work {
    Text::State* state;
    std::vector<uint64_t*> fresh;   // [symbols]: facts that were not joined yet
    std::vector<uint64_t> pending;  // bits of symbols with fresh facts
  };
  std::vector<Work> works(count);
  for (size_t i = 0; i < count; ++i) {
    Text::State& s = text_.at(states[i]);
    if (free_ids_.empty()) {
      s.id = int32_t(state_of_.size());
      state_of_.push_back(states[i]);
    } else {
      s.id = free_ids_.back();
      free_ids_.pop_back();
      state_of_[s.id] = states[i];
    }
    s.rows.assign(symbols, nullptr);
    works[i] = {&s, std::vector<uint64_t*>(symbols, nullptr),
                std::vector<uint64_t>((symbols + 63) / 64, 0)};
  }
  int64_t adds = 0;  // not told to effort yet
  const auto add = [&](Work& work, int32_t symbol, const uint64_t* from) {
    ++adds;
    uint64_t*& row = work.state->rows[symbol];
    if (row) {
      uint64_t any = 0;
      for (int32_t w = 0; w < words; ++w) any |= from[w] & ~row[w];
      if (!any) return;
    } else {
      if (std::all_of(from, from + words, [](uint64_t word) { return word == 0; })) return;
      row = pool_->take();
    }
    uint64_t*& fresh = work.fresh[symbol];
    if (!fresh) fresh = pool_->take();
    for (int32_t w = 0; w < words; ++w) {
      const uint64_t news = from[w] & ~row[w];
      row[w] |= news;
      fresh[w] |= news;
    }
    work.pending[symbol >> 6] |= uint64_t(1) << (symbol & 63);
  };

  std::vector<uint64_t> bits(words);
  const auto set = [&](int32_t id) { bits[id >> 6] |= uint64_t(1) << (id & 63); };
  for (Work& work : works) {
    for (const auto& edge : work.state->edges) {
      std::fill(bits.begin(), bits.end(), 0);
      for (int32_t to : edge.ends) {
        if (text_.at(to).live) set(text_.at(to).id);
      }
      add(work, edge.terminal, bits.data());
    }
    std::fill(bits.begin(), bits.end(), 0);
    set(work.state->id);
    for (size_t t = 0; t < grammar_.terminals.all.size(); ++t) {
      if (grammar_.terminals.all[t].nullable()) add(work, int32_t(t), bits.data());
    }
    for (int32_t head : grammar_.empty) add(work, head, bits.data());
  }

  const auto join = [&](size_t i, int32_t symbol) {
    Work& work = works[i];
    std::copy_n(work.fresh[symbol], words, bits.begin());
    std::fill_n(work.fresh[symbol], words, 0);
    for (int32_t head : grammar_.units[symbol]) add(work, head, bits.data());
    if (!grammar_.lefts[symbol].empty()) {
      for (int32_t w = 0; w < words; ++w) {
        for (uint64_t left = bits[w]; left; left &= left - 1) {
          const auto& rows = text_.at(state_of_[w * 64 + __builtin_ctzll(left)]).rows;
          for (const auto& [head, other] : grammar_.lefts[symbol]) {
            if (rows[other]) add(work, head, rows[other]);
          }
        }
      }
    }
    // A -> Y X where Y leads from a state of this place to this one.
    const int32_t id = work.state->id;
    for (const auto& [head, other] : grammar_.rights[symbol]) {
      for (Work& from : works) {
        const uint64_t* row = from.state->rows[other];
        if (row && row[id >> 6] >> (id & 63) & 1) add(from, head, bits.data());
      }
    }
  };
  for (bool more = true; more;) {
    more = false;
    for (int32_t w = 0; w < (symbols + 63) / 64; ++w) {
      for (size_t i = 0; i < count;) {
        uint64_t& pending = works[i].pending[w];
        if (!pending) {
          ++i;
          continue;
        }
        const int32_t symbol = w * 64 + __builtin_ctzll(pending);
        pending &= pending - 1;
        join(i, symbol);
        effort.spend(1 + adds * (1 + words / 4));
        adds = 0;
        more = true;
      }
    }
  }
  for (Work& work : works) {
    for (uint64_t* row : work.fresh) {
      if (row) pool_->give(row);
    }
  }
  computed_ += int64_t(count);
}

}  // namespace tokops::grammar::infill
