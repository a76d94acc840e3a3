"""``tokops.patch``: methods on one model instance, with an exact undo."""

import functools
import importlib
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import LogitsProcessorList, StoppingCriteriaList, StopStringCriteria

from ..methods import SLOTS, Dense, Method
from . import attention
from .cache import PAGE_SIZE, PagedCache, Plan
from .constrain import Hooks, Padding, Setting, ends_of
from .families import CACHE, check_model, given_cache, shape_of
from .report import Counters, Report

_RUNS: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


class Run:
    """A patched model: :meth:`report` what it read, :meth:`undo` the patch. As a context manager it undoes on exit.

    Made by :func:`tokops.patch`. The patch is active from then on.
    """

    def __init__(self, model, methods: tuple[Method, ...], page_size: int):
        self.model = model
        self.methods = methods
        #: What constraining methods added to the last generation, in order: processors and criteria may be asked.
        self.hooks: list[Hooks] = []
        self._page_size = page_size
        shape = shape_of(model.config)
        self._plan = Plan(methods, Counters(shape.windows), shape)
        self._before = _implementations(model.config)
        attention.register()
        model.set_attn_implementation(attention.NAME)
        self._hook = model.base_model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        self._wrapped = [name for name in _WRAPPERS if hasattr(model, name)]
        for name in self._wrapped:
            setattr(
                model,
                name,
                functools.wraps(getattr(model, name))(_WRAPPERS[name](self, getattr(model, name))),
            )
        _RUNS[model] = self

    def new_cache(self, prompt_length: int | None = None) -> PagedCache:
        """An empty cache for this model.

        Args:
            prompt_length: see :attr:`PagedCache.prompt_length`.
        """
        cache = PagedCache(self.model.config, self._plan, self._page_size)
        cache.prompt_length = prompt_length
        return cache

    @property
    def counters(self) -> Counters:
        """The running sums that reports are made of."""
        return self._plan.counters

    def report(self) -> Report:
        """What decoding has read since the patch, and what the last cache holds."""
        return self._plan.counters.report(self.methods)

    def undo(self) -> None:
        """Give the model back as it was. Doing so twice is harmless."""
        if _RUNS.get(self.model) is not self:
            return
        del _RUNS[self.model]
        for name in self._wrapped:
            delattr(self.model, name)
        self._hook.remove()
        self.model.set_attn_implementation(self._before)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exc) -> None:
        self.undo()

    def check_cache(self, cache) -> None:
        """Refuse a cache that this run did not make."""
        if not isinstance(cache, PagedCache):
            raise TypeError(
                f"a model patched by tokops needs a tokops cache, got {type(cache).__name__}: leave past_key_values "
                "out, or pass run.new_cache()"
            )
        if cache.state.plan is None:
            raise ValueError("this cache was loaded from a file: run.adopt(cache) takes it over")
        if cache.state.plan is not self._plan:
            raise ValueError("this cache belongs to another tokops.patch; make one with run.new_cache()")

    def adopt(self, cache: PagedCache) -> None:
        """Take over a cache that another run of the same model has filled, or one that was saved and loaded.

        From now on this run's selecting methods read it. How its tokens are stored does not change.

        Args:
            cache: made by ``new_cache()`` of the other run.

        Raises:
            TypeError: not a tokops cache.
            ValueError: a cache of another model.
        """
        if not isinstance(cache, PagedCache):
            raise TypeError(f"only a tokops cache can be taken over, got {type(cache).__name__}")
        own, its = self._plan.shape, cache.state.shape
        if own.digest != its.digest:
            raise ValueError(
                f"this cache is of another model: {its.family} {its.name} {its.digest}, not {own.family} {own.name} "
                f"{own.digest}"
            )
        cache.state.plan = self._plan

    def _before_forward(self, module, args, kwargs):
        for name in ("output_attentions",):
            if kwargs.get(name) or getattr(module.config, name, False):
                raise NotImplementedError(
                    f"tokops does not support {name}=True: attention weights are never formed"
                )
        if len(args) > 3:
            raise TypeError("pass the cache to a model patched by tokops by keyword")
        cache = given_cache(kwargs)
        if cache is not None:
            self.check_cache(cache)
        elif module.config.use_cache if kwargs.get("use_cache") is None else kwargs["use_cache"]:
            kwargs[CACHE] = self.new_cache()
        return args, kwargs


def run_of(model) -> Run | None:
    """The patch that is in force on a model, None if there is none."""
    return _RUNS.get(model)


def _implementations(config) -> dict:
    nested = {name: getattr(config, name) for name in config.sub_configs}
    return {
        "": config._attn_implementation,
        **{name: sub._attn_implementation for name, sub in nested.items() if sub is not None},
    }


def _wrap_generate(run: Run, original):
    def generate(inputs=None, *args, **kwargs):
        config = kwargs.get("generation_config") or (args[0] if args else None)

        def setting(name, default=None):
            for source in (kwargs.get(name), getattr(config, name, None)):
                if source is not None:
                    return source
            value = getattr(run.model.generation_config, name, None)
            return default if value is None else value

        _refuse(setting)
        cache = given_cache(kwargs)
        if cache is None and setting("use_cache", True):
            cache = kwargs[CACHE] = run.new_cache()
        if cache is not None:
            run.check_cache(cache)
            cache.prompt_length = _prompt_length(inputs, kwargs, cache.get_seq_length())
        looping = next((method for method in run.methods if method.loop is not None), None)
        if looping is not None:
            _refuse_beside_loop(looping, cache, setting, kwargs)
            _stop_at_strings(kwargs)
            kwargs["custom_generate"] = functools.partial(
                _loop_of(looping),
                run=run,
                method=looping,
                streamer=kwargs.get("streamer"),
                tokenizer=kwargs.get("tokenizer"),
            )
        with _constrained(run, inputs, args, kwargs, setting):
            return original(inputs, *args, **kwargs)

    return generate


@contextmanager
def _constrained(run: Run, inputs, args, kwargs, setting) -> Iterator[None]:
    """Add to one generation what constraining methods give it: behind the caller's own, in the order of the methods."""
    constraining = [method for method in run.methods if method.hooks is not None]
    if not constraining:
        yield
        return
    if len(args) > 1:
        raise TypeError("pass logits_processor and stopping_criteria to a model patched by tokops by keyword")
    mask = kwargs.get("attention_mask")
    ends = setting("eos_token_id")
    this = Setting(
        model=run.model,
        tokenizer=kwargs.get("tokenizer"),
        padding=Padding.of(run.model, inputs if inputs is not None else kwargs.get("input_ids"), mask),
        eos=ends_of(run.model) if ends is None else frozenset((ends,) if isinstance(ends, int) else ends),
        assisted=bool(setting("prompt_lookup_num_tokens")) or kwargs.get("assistant_model") is not None,
        streamer=kwargs.get("streamer"),
    )
    run.hooks = []
    try:
        for method in constraining:
            run.hooks.append(importlib.import_module(f".{method.hooks}", __package__).hooks(method, this))
        for name, kind, added in (
            ("logits_processor", LogitsProcessorList, [x for hooks in run.hooks for x in hooks.processors]),
            ("stopping_criteria", StoppingCriteriaList, [x for hooks in run.hooks for x in hooks.criteria]),
        ):
            if added:
                kwargs[name] = kind([*(kwargs.get(name) or ()), *added])
        yield
    finally:
        for hooks in run.hooks:
            hooks.close()


def _loop_of(method: Method):
    """The decoding loop of a method, a callable for ``custom_generate``.

    ``generate`` takes a streamer and a tokenizer for itself and does not pass them to such a callable.
    """
    return importlib.import_module(f".{method.loop}", __package__).generate_loop


def _stop_at_strings(kwargs) -> None:
    """Make ``stop_strings`` a criterion: ``generate`` loses the tokenizer on the way to a loop that is not its own."""
    if kwargs.get("stop_strings") and kwargs.get("tokenizer") is not None:
        criterion = StopStringCriteria(kwargs["tokenizer"], kwargs.pop("stop_strings"))
        kwargs["stopping_criteria"] = StoppingCriteriaList(
            [*(kwargs.get("stopping_criteria") or ()), criterion]
        )


def _refuse(setting) -> None:
    """Refuse the features of ``generate`` that tokops does not have."""
    if setting("output_attentions", False):
        raise NotImplementedError(
            "tokops does not support output_attentions=True: attention weights are never formed"
        )
    implementation = setting("cache_implementation")
    if implementation not in (None, "dynamic"):
        raise NotImplementedError(
            f"tokops does not support cache_implementation={implementation!r}: it brings its own cache; set it to None"
        )


def _refuse_beside_loop(method: Method, cache, setting, kwargs) -> None:
    for name, active in (
        ("use_cache=False", cache is None),
        ("num_beams", setting("num_beams", 1) > 1),
        ("prompt_lookup_num_tokens", bool(setting("prompt_lookup_num_tokens"))),
        ("assistant_model", kwargs.get("assistant_model") is not None),
        ("custom_generate", kwargs.get("custom_generate") is not None),
        *((name, bool(setting(name))) for name in ("output_scores", "output_logits", "output_hidden_states")),
    ):
        if active:
            raise NotImplementedError(
                f"{type(method).__name__} has a decoding loop of its own and does not support {name}"
            )


def _prompt_length(inputs, kwargs, past: int) -> int:
    """Length of the whole prompt: inputs may be all of it, or only what the cache does not hold yet."""
    given = next(
        (x for x in (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if x is not None), None
    )
    new = 1 if given is None else given.shape[1]
    mask = kwargs.get("attention_mask")
    return max(new if new > past else past + new, 0 if mask is None else mask.shape[1])


def _refuse_batching(run: Run, original):
    def refuse(*args, **kwargs):
        raise NotImplementedError("tokops does not support continuous batching (generate_batch)")

    return refuse


_WRAPPERS = {
    "generate": _wrap_generate,
    "generate_batch": _refuse_batching,
    "init_continuous_batching": _refuse_batching,
}


def _fill_slots(methods) -> None:
    taken: dict[str, Method] = {}
    for method in methods:
        if not isinstance(method, Method):
            raise TypeError(f"tokops.patch takes methods such as tokops.methods.Dense(), got {method!r}")
        for slot in method.slots:
            if slot not in SLOTS:
                raise ValueError(
                    f"{type(method).__name__} fills an unknown slot {slot!r}; slots are {', '.join(SLOTS)}"
                )
            if slot in taken and slot != "constrain":
                raise ValueError(
                    f"{type(taken[slot]).__name__} and {type(method).__name__} clash: both fill the slot {slot!r}"
                )
            taken[slot] = method


def patch(model, *methods: Method, page_size: int = PAGE_SIZE) -> Run:
    """Run a transformers model with tokops: our cache and kernels, and the given methods.

    Args:
        model: a transformers model of a tested family; only this instance changes.
        methods: one per slot, and any number that constrain, which are applied in the order given; none means
            :class:`tokops.methods.Dense`.
        page_size: tokens per page of the cache.

    Returns:
        The run: ``run.report()``, ``run.undo()``. The patch is active from the call; ``with`` only undoes it.

    Raises:
        TypeError: not a transformers model, or not a method.
        ValueError: an untested family, clashing methods, a method that cannot run on this model, or a model that
            is patched already.

    Example::

        with tokops.patch(model, tokops.methods.TidalDecode(budget=512)) as run:
            model.generate(**inputs, max_new_tokens=100)
        print(run.report())
    """
    check_model(model)
    if model in _RUNS:
        raise ValueError("this model is patched by tokops already: undo() the first patch")
    if page_size < 1:
        raise ValueError(f"page_size must be at least 1, got {page_size}")
    methods = methods or (Dense(),)
    _fill_slots(methods)
    shape = shape_of(model.config)
    resolved = tuple(method.resolve(shape) for method in methods)
    selecting = [type(m).__name__ for m in resolved if "select" in m.slots]
    for method in resolved:
        layout = method.new_layout(page_size, shape)  # refuses a page size that the store cannot have
        if selecting and getattr(layout, "key_tiles", False):
            name = type(method).__name__
            raise ValueError(f"{name}(key_tiles=True) is read densely alone and clashes with {selecting[0]}")
    looping = [type(m).__name__ for m in resolved if m.loop is not None]
    if len(looping) > 1:
        raise ValueError(f"{looping[0]} and {looping[1]} clash: both have a decoding loop of their own")
    if any(m.correction_period for m in resolved):
        other = [type(m).__name__ for m in resolved if "store" in m.slots and not isinstance(m, Dense)]
        if other:
            raise ValueError(f"cache correction needs full-precision pages and clashes with {other[0]}")
    return Run(model, resolved, page_size)
