"""What can be said about a face: vocabularies, questions with closed answers, rules. Data; no arrays."""
