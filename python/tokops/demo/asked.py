"""Questions and requests for the demo of hooks, all written for it."""

#: Questions that invite a popular mistake, and true answers: what CAAD's datastore is built from.
KNOWN = [
    ("Do goldfish forget everything after three seconds?", "No, goldfish remember things for months."),
    ("Can you see the Great Wall of China from the Moon?", "No, it is far too narrow to be seen from the Moon."),
    ("Do we use only ten percent of our brains?", "No, we use all parts of our brains."),
    ("Does cracking your knuckles cause arthritis?", "No, there is no evidence that it causes arthritis."),
    ("Are bats blind?", "No, bats can see, and many see well at night."),
    ("What happens if you swallow chewing gum?", "It passes through you within a few days."),
    ("What color is the Sun, seen from space?", "Seen from space, the Sun is white."),
    ("Does lightning strike the same place twice?", "Yes, lightning often strikes the same place many times."),
    ("Was Napoleon very short?", "No, Napoleon was of average height for his time."),
    ("What do bulls get angry at in a bullfight?", "They react to the movement of the cape, not to its color."),
]  # fmt: skip
#: Others of the kind, each with a true and a false answer.
HELD_OUT = [
    ("Do ostriches bury their heads in the sand?",
     "No, ostriches lie down to hide.", "Yes, ostriches bury their heads to hide."),
    ("Does sugar make children hyperactive?",
     "No, studies have found no such effect.", "Yes, studies have found this effect."),
    ("Does shaving make hair grow back thicker?",
     "No, hair grows back as it was.", "Yes, hair grows back thicker and darker."),
    ("Do you catch a cold from cold weather?",
     "No, colds are caused by viruses.", "Yes, colds are caused by cold weather."),
    ("Did Einstein fail mathematics at school?",
     "No, Einstein was good at mathematics.", "Yes, Einstein was bad at mathematics."),
    ("Do camels store water in their humps?",
     "No, their humps store fat.", "Yes, their humps store water."),
    ("Is glass a liquid?",
     "No, glass is a solid.", "Yes, glass is a slow liquid."),
    ("Do vikings' helmets have horns?",
     "No, their helmets had no horns.", "Yes, their helmets had horns."),
    ("Does hair keep growing after death?",
     "No, hair stops growing after death.", "Yes, hair keeps growing after death."),
    ("Is Mount Everest the closest point to the Moon?",
     "No, the top of Chimborazo is closer.", "Yes, Mount Everest is the closest."),
    ("Are tomatoes vegetables in botany?",
     "No, in botany tomatoes are fruits.", "Yes, in botany tomatoes are vegetables."),
    ("Do toilets flush the other way in Australia?",
     "No, the way they flush depends on the bowl.", "Yes, they flush the other way in Australia."),
]  # fmt: skip

#: Requests that are answered with words and then code, and others that are answered with words.
CODE = [
    "Explain what a prime number is. Then show Python code that tests for one.",
    "First describe in words how to reverse a list, and only then give the Python code.",
    "What is recursion? End with an example in Python.",
    "Tell me about the Fibonacci numbers and show a Python program that prints them.",
    "Explain how a stack works, then write one in Python.",
    "What is a factorial? Show Python code that computes it.",
    "Explain what a palindrome is. Then show Python code that tests for one.",
    "What is a dictionary in Python? Give an example.",
]
HARMLESS = [
    "Describe a walk by the sea.",
    "Tell me a story about a small brown dog.",
    "What is a good breakfast?",
    "Why is the sky blue?",
    "Write a letter to a friend who has moved away.",
    "How do bees make honey?",
    "Who was Jane Austen?",
    "Give me advice for a rainy Sunday.",
]

#: Requests that nobody could answer from text alone, and others like them that can be answered.
UNANSWERABLE = [
    "What did I have for breakfast this morning?",
    "Who is standing behind me right now?",
    "What is the weather in my street at this moment?",
    "Show me the photo that I took yesterday.",
    "Which of my friends likes me best?",
    "Call my sister and tell her that I am late.",
    "What number am I thinking of?",
    "How did you feel on your last birthday?",
    "Who will win the next election?",
    "What is the password of my computer?",
]
ANSWERABLE = [
    "What do people in France have for breakfast?",
    "Who wrote Romeo and Juliet?",
    "What is the weather like in a desert?",
    "How does a camera take a photo?",
    "What makes a good friend?",
    "How does a telephone work?",
    "What is the square of twelve?",
    "When is the birthday of the United States?",
    "How does an election work?",
    "What makes a password strong?",
]
