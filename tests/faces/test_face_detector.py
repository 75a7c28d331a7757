import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data as pictures

from fi_jax.errors import UserError
from fi_jax.faces import face_detector as finder
from fi_jax.pictures.decode import decode

REAL = Path("../shared/data")


def overlap(a, b):
    inner = (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    return finder.area(inner) / (finder.area(a) + finder.area(b) - finder.area(inner))


def test_finds_the_portrait_face():
    faces = finder.find_faces(pictures.astronaut())
    assert len(faces) == 1
    assert overlap(faces[0], (175, 65, 275, 165)) > 0.6


@pytest.mark.parametrize("picture", [pictures.coffee, pictures.chelsea, pictures.rocket])
def test_finds_nothing_where_no_face_is(picture):
    with pytest.raises(UserError, match="no face found in thing.jpg; give --box"):
        finder.choose_face(finder.find_faces(picture()), name="thing.jpg")


def test_several_faces_are_sorted_by_size_and_chosen_by_number():
    portrait = pictures.astronaut()[:256, :400]
    small = np.asarray(Image.fromarray(portrait).resize((300, 192)))
    canvas = np.zeros((256, 700, 3), np.uint8)
    canvas[:192, 400:700] = small
    canvas[:, :400] = portrait
    faces = finder.find_faces(canvas)
    assert len(faces) == 2
    assert finder.area(faces[0]) > finder.area(faces[1]) and faces[0][0] < 400 < faces[1][0]
    assert finder.choose_face(faces) == faces[0]
    assert finder.choose_face(faces, 2) == faces[1]
    with pytest.raises(UserError, match=r"--face 3: party.jpg has 2 face\(s\): 1: \d+,\d+,\d+,\d+; 2: "):
        finder.choose_face(faces, 3, "party.jpg")


def test_a_fifty_megapixel_picture_is_searched_small():
    big = np.zeros((7000, 7200, 3), np.uint8)
    big[1000:6120, 1000:6120] = np.asarray(Image.fromarray(pictures.astronaut()).resize((5120, 5120)))
    finder.find_faces(pictures.astronaut())  # loads the cascade
    start = time.process_time()
    faces = finder.find_faces(big)
    assert time.process_time() - start < 10
    assert any(overlap(face, (2750, 1650, 3750, 2650)) > 0.5 for face in faces)


def test_boxes_about_the_same_place_are_looked_at_once():
    near, apart = [(100, 100, 140, 140), (105, 95, 155, 145)], (300, 100, 340, 140)
    assert finder._regions([near[0], apart, near[1]]) == [
        ((280, 80, 360, 160), 40, 40),
        ((80, 70, 180, 170), 40, 50),
    ]


def test_tiny_and_flat_pictures_have_no_face():
    for shape in [(1, 1, 3), (5, 400, 3), (128, 128, 3), (4000, 1, 3), (2, 40_000, 3), (20_000, 700, 3)]:
        assert finder.find_faces(np.full(shape, 128, np.uint8)) == []


coordinate = st.floats(-50, 500)
box = st.tuples(coordinate, coordinate, st.floats(1, 300), st.floats(1, 300)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(st.lists(box, max_size=8))
def test_suppression_keeps_disjoint_boxes_largest_first(boxes):
    kept = finder.suppress(boxes)
    areas = [finder.area(b) for b in kept]
    assert areas == sorted(areas, reverse=True)
    assert bool(kept) == bool(boxes)
    for dropped in set(boxes) - set(kept):
        assert any(finder._overlaps(dropped, k, 0.3 * 0.999) for k in kept)


@given(st.floats(0, 100), st.floats(0, 100), st.floats(10, 100))
def test_the_crop_is_a_square_around_the_face(x, y, side):
    face = (x, y, x + side, y + side)
    left, top, right, bottom = finder.crop_for_model(face)
    assert np.isclose(right - left, bottom - top) and np.isclose(right - left, finder.CROP_SCALE * side)
    assert left < face[0] and top < face[1] and right > face[2] and bottom > face[3]


def test_box_option():
    image = np.zeros((100, 200, 3), np.uint8)
    located = partial(finder.locate, image, finder.find_faces)
    assert located("full") == ((0, 0, 200, 100), []) and located((1, 2, 3, 4)).box == (1, 2, 3, 4)
    assert list(located(np.array([1, 2, 3, 4])).box) == [1, 2, 3, 4]
    assert located(" 10, 20,60.5,80").box == (10, 20, 60.5, 80)
    # An edge far outside is set to the picture's; a little outside is let be, for the edge is repeated there.
    assert located("0,0,1e9,1e9").box == (0, 0, 200, 100)
    assert located("-1e308,-inf,50,50").box == (0, 0, 50, 50)
    assert located("-20,-5,230,90").box == (-20, -5, 230, 90)
    for text, message in [
        ("nan,0,10,10", "is empty"),
        ("1e8,0,1e9,50", "lies outside the 200x100 picture"),
        ("10,20,30", "is not left,top,right,bottom"),
        ("a,b,c,d", "is not left,top,right,bottom"),
        ("60,20,10,80", "is empty"),
        ("300,10,400,60", "lies outside the 200x100 picture"),
    ]:
        with pytest.raises(UserError, match=message):
            located(text)


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.exists(), reason="the research data sets are not beside the checkout")
@pytest.mark.parametrize(
    ("pattern", "crop"),
    [
        ("celeba/img_align_celeba/*.jpg", lambda h, w: (0, h * 30 / 218, w, h * 30 / 218 + w)),
        ("celebamask_hq/images/*.jpg", lambda h, w: (0, 0, w, h)),
    ],
)
def test_crops_of_found_faces_are_framed_like_the_training_crops(pattern, crop):
    close = []
    for path in sorted(REAL.glob(pattern))[::40][:20]:
        image = decode(path)
        faces = finder.find_faces(image)
        close.append(bool(faces) and overlap(finder.crop_for_model(faces[0]), crop(*image.shape[:2])) > 0.6)
    assert len(close) == 20
    assert np.mean(close) >= 0.85
