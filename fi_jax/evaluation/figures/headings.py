"""How answers are grouped for a reader: every attribute under a heading."""

from fi_jax.labels.questions import Question

_HEADINGS: dict[str, str] = {
    "Person": "Male Female Young Middle_Aged Senior Attractive Chubby Asian White Black",
    "Hair": "Bald Bangs Black_Hair Blond_Hair Brown_Hair Gray_Hair Straight_Hair Wavy_Hair Receding_Hairline Sideburns "
    "Fully_Visible_Forehead Obstructed_Forehead",
    "Beard": "No_Beard 5_o_Clock_Shadow Goatee Mustache",
    "Eyes": "Arched_Eyebrows Bushy_Eyebrows Bags_Under_Eyes Narrow_Eyes Brown_Eyes",
    "Mouth": "Smiling Mouth_Slightly_Open Mouth_Closed Big_Lips",
    "Face": "Oval_Face Square_Face Round_Face High_Cheekbones Double_Chin Big_Nose Pointy_Nose",
    "Skin and make-up": "Pale_Skin Rosy_Cheeks Shiny_Skin Heavy_Makeup Wearing_Lipstick",
    "Wearing": "Eyeglasses No_Eyewear Wearing_Hat Wearing_Earrings Wearing_Necklace Wearing_Necktie",
    "Picture": "Blurry",
}
_OF_ATTRIBUTE = {name: heading for heading, names in _HEADINGS.items() for name in names.split()}
HEADINGS = (*_HEADINGS, "Other")


def heading_of(question: Question) -> str:
    """The heading of a yes/no question; "Other" for an attribute of no known heading."""
    return _OF_ATTRIBUTE.get(question.labels[0] or "", "Other")


def readable(label: str) -> str:
    """An attribute's name as text: "5_o_Clock_Shadow" → "5 o'clock shadow", "race:White" → "White"."""
    words = label.rpartition(":")[2].replace("5_o_Clock", "5 o'clock").replace("_", " ")
    return words[:1].upper() + words[1:].lower() if "_" in label else words
