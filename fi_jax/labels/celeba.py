"""CelebA's 40 attributes in file order: name as released, prompt sentence, yes/no question, groups."""

from fi_jax.labels.vocabulary import Group, Label, Vocabulary

# (name as released, prompt for the text encoder, yes/no question).
ATTRIBUTES: tuple[tuple[str, str, str], ...] = (
    ("5_o_Clock_Shadow", "A face with stubble, a five o'clock shadow.", "Does this person have stubble?"),
    ("Arched_Eyebrows", "A face with arched eyebrows.", "Does this person have arched eyebrows?"),
    ("Attractive", "An attractive face.", "Is this person attractive?"),
    ("Bags_Under_Eyes", "A face with bags under the eyes.", "Are there bags under the eyes?"),
    ("Bald", "A bald head without hair.", "Is this person bald?"),
    ("Bangs", "A face with bangs over the forehead.", "Does this person have bangs?"),
    ("Big_Lips", "A face with big, full lips.", "Does this person have big lips?"),
    ("Big_Nose", "A face with a big nose.", "Does this person have a big nose?"),
    ("Black_Hair", "A person with black hair.", "Does this person have black hair?"),
    ("Blond_Hair", "A person with blond hair.", "Does this person have blond hair?"),
    ("Blurry", "A blurry picture of a face.", "Is the picture blurry?"),
    ("Brown_Hair", "A person with brown hair.", "Does this person have brown hair?"),
    ("Bushy_Eyebrows", "A face with bushy eyebrows.", "Does this person have bushy eyebrows?"),
    ("Chubby", "A chubby face.", "Is this person chubby?"),
    ("Double_Chin", "A face with a double chin.", "Does this person have a double chin?"),
    ("Eyeglasses", "A face with eyeglasses.", "Is this person wearing eyeglasses?"),
    ("Goatee", "A face with a goatee.", "Does this person have a goatee?"),
    ("Gray_Hair", "A person with gray hair.", "Does this person have gray hair?"),
    ("Heavy_Makeup", "A face with heavy makeup.", "Is this person wearing heavy makeup?"),
    ("High_Cheekbones", "A face with high cheekbones.", "Does this person have high cheekbones?"),
    ("Male", "The face of a man.", "Is this person male?"),
    ("Mouth_Slightly_Open", "A face with the mouth slightly open.", "Is the mouth slightly open?"),
    ("Mustache", "A face with a mustache.", "Does this person have a mustache?"),
    ("Narrow_Eyes", "A face with narrow eyes.", "Does this person have narrow eyes?"),
    ("No_Beard", "A face without a beard.", "Is this person without a beard?"),
    ("Oval_Face", "A face of oval shape.", "Does this person have an oval face?"),
    ("Pale_Skin", "A face with pale skin.", "Does this person have pale skin?"),
    ("Pointy_Nose", "A face with a pointy nose.", "Does this person have a pointy nose?"),
    ("Receding_Hairline", "A head with a receding hairline.", "Is the hairline receding?"),
    ("Rosy_Cheeks", "A face with rosy cheeks.", "Does this person have rosy cheeks?"),
    ("Sideburns", "A face with sideburns.", "Does this person have sideburns?"),
    ("Smiling", "A smiling face.", "Is this person smiling?"),
    ("Straight_Hair", "A person with straight hair.", "Does this person have straight hair?"),
    ("Wavy_Hair", "A person with wavy hair.", "Does this person have wavy hair?"),
    ("Wearing_Earrings", "A person wearing earrings.", "Is this person wearing earrings?"),
    ("Wearing_Hat", "A person wearing a hat.", "Is this person wearing a hat?"),
    ("Wearing_Lipstick", "A face with lipstick.", "Is this person wearing lipstick?"),
    ("Wearing_Necklace", "A person wearing a necklace.", "Is this person wearing a necklace?"),
    ("Wearing_Necktie", "A person wearing a necktie.", "Is this person wearing a necktie?"),
    ("Young", "The face of a young person.", "Is this person young?"),
)

LABELS: tuple[Label, ...] = tuple(Label(name, prompt) for name, prompt, _ in ATTRIBUTES)
QUESTIONS: dict[str, str] = {name: question for name, _, question in ATTRIBUTES}

# At most one, never exhaustive: a third of CelebA-HQ has none of the four colours.
HAIR_COLOUR = Group("hair_colour", ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair"), "at_most_one")
HAIR_SHAPE = Group("hair_shape", ("Straight_Hair", "Wavy_Hair"), "at_most_one")
GROUPS: tuple[Group, ...] = (HAIR_COLOUR, HAIR_SHAPE)

VOCABULARY = Vocabulary("celeba", LABELS, GROUPS)
