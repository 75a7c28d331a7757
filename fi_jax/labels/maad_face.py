"""MAAD-Face's 47 attributes in file order; words it shares with CelebA are the same labels."""

from fi_jax.labels import celeba
from fi_jax.labels.vocabulary import Group, Label, Vocabulary

# The attributes that CelebA does not have: (name as released, prompt, yes/no question).
_OWN: tuple[tuple[str, str, str], ...] = (
    ("Middle_Aged", "The face of a middle-aged person.", "Is this person middle-aged?"),
    ("Senior", "The face of an old person.", "Is this person a senior?"),
    ("Asian", "A person who looks Asian.", "Is this person Asian?"),
    ("White", "A person who looks White.", "Is this person White?"),
    ("Black", "A person who looks Black.", "Is this person Black?"),
    ("Shiny_Skin", "A face with shiny skin.", "Is the skin shiny?"),
    ("Square_Face", "A face of square shape.", "Does this person have a square face?"),
    ("Round_Face", "A face of round shape.", "Does this person have a round face?"),
    ("Obstructed_Forehead", "A face with the forehead covered.", "Is the forehead obstructed?"),
    ("Fully_Visible_Forehead", "A face with the whole forehead visible.", "Is the forehead fully visible?"),
    ("Brown_Eyes", "A face with brown eyes.", "Does this person have brown eyes?"),
    ("Mouth_Closed", "A face with the mouth closed.", "Is the mouth closed?"),
    ("No_Eyewear", "A face without eyewear.", "Is this person without eyewear?"),
)

# The order of the released file's columns.
_COLUMNS = (
    "Male Young Middle_Aged Senior Asian White Black Rosy_Cheeks Shiny_Skin Bald Wavy_Hair Receding_Hairline Bangs "
    "Sideburns Black_Hair Blond_Hair Brown_Hair Gray_Hair No_Beard Mustache 5_o_Clock_Shadow Goatee Oval_Face "
    "Square_Face Round_Face Double_Chin High_Cheekbones Chubby Obstructed_Forehead Fully_Visible_Forehead Brown_Eyes "
    "Bags_Under_Eyes Bushy_Eyebrows Arched_Eyebrows Mouth_Closed Smiling Big_Lips Big_Nose Pointy_Nose Heavy_Makeup "
    "Wearing_Hat Wearing_Earrings Wearing_Necktie Wearing_Lipstick No_Eyewear Eyeglasses Attractive"
)

_KNOWN = {row[0]: row for row in celeba.ATTRIBUTES + _OWN}
ATTRIBUTES: tuple[tuple[str, str, str], ...] = tuple(_KNOWN[name] for name in _COLUMNS.split())

LABELS: tuple[Label, ...] = tuple(Label(name, prompt) for name, prompt, _ in ATTRIBUTES)
QUESTIONS: dict[str, str] = {name: question for name, _, question in ATTRIBUTES}

# All at most one: MAAD-Face leaves what it is unsure of undefined (0), so none is exhaustive.
GROUPS: tuple[Group, ...] = (
    celeba.HAIR_COLOUR,
    Group("maad_age", ("Young", "Middle_Aged", "Senior"), "at_most_one"),
    Group("maad_race", ("Asian", "White", "Black"), "at_most_one"),
    Group("face_shape", ("Oval_Face", "Square_Face", "Round_Face"), "at_most_one"),
    Group("forehead", ("Obstructed_Forehead", "Fully_Visible_Forehead"), "at_most_one"),
    Group("eyewear", ("No_Eyewear", "Eyeglasses"), "at_most_one"),
)

VOCABULARY = Vocabulary("maad_face", LABELS, GROUPS)
