"""The demo server over real HTTP with a tiny real model: answers, limits, a crowd, a huge picture, nothing kept."""

# ruff: noqa: E402 (what needs the extra is imported after it was looked for)

import base64
import copy
import io
import json
import socket
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason="the demo extra is not installed")
pytest.importorskip("starlette", reason="the demo extra is not installed")

import skimage.data
from running import file_of

from fi_jax.cli.main import main
from fi_jax.demo import app as app_module
from fi_jax.demo.service import Service, Switches, decoded_face, encoded, encoded_face
from fi_jax.errors import UserError
from fi_jax.faces.face_detector import locate
from fi_jax.faces.framing import FramedFace, frame_face
from fi_jax.faces.map_cache import parser_of
from fi_jax.faces.picture_map import faces_in
from fi_jax.knowledge.score_graph import Relations

ASTRONAUT = skimage.data.astronaut()


def grey_face(service, size: int = 0) -> bytes:
    grey = np.full((size or service.size,) * 2, 127, np.uint8)
    return encoded_face(FramedFace(np.stack([grey] * 3, -1), np.zeros_like(grey), "box"))


@pytest.fixture(scope="module")
def crop(server) -> bytes:
    _, found = server.json("/api/faces", file_of(ASTRONAUT))
    return base64.b64decode(found["faces"][0]["crop"].split(",")[1])


def test_the_page_is_its_own_and_says_what_it_must_not_be_used_for(server):
    status, text, headers = server.call("/")
    assert status == 200 and b"must not be used for" in text
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    nonce = policy.split("'nonce-")[1].split("'")[0]
    assert f'<script nonce="{nonce}">'.encode() in text and b"{{" not in text
    assert b"http://" not in text and b"https://" not in text
    assert server.call("/")[1] != text, "every visit has its own nonce"


def test_faces_are_found_chosen_and_cut(server, service):
    _, one = server.json("/api/faces", file_of(ASTRONAUT))
    assert len(one["faces"]) == 1 and (one["width"], one["height"]) == (512, 512)
    left, top, right, bottom = one["faces"][0]["box"]
    assert left < 225 < right and top < 110 < bottom, "the box holds the face"
    _, two = server.json("/api/faces", file_of(np.concatenate([ASTRONAUT, ASTRONAUT[:, ::-1]], 1)))
    assert len(two["faces"]) == 2
    blank = file_of(np.full((90, 120, 3), 255, np.uint8))
    status, none = server.json("/api/faces", blank)
    assert status == 422 and none["error"].startswith("No face was found")
    status, whole = server.json("/api/faces?whole=1", blank)
    assert status == 200 and whole["faces"][0]["box"] == [0, 0, 120, 90]


def test_bad_uploads_get_one_clear_line(server):
    photo = file_of(ASTRONAUT, "JPEG")
    for body, status, words in (
        (b"hello", 422, "not an image"),
        (b"", 422, "empty"),
        (photo[: len(photo) // 2], 422, "truncated"),
    ):
        got, answer = server.json("/api/faces", body)
        assert got == status and words in answer["error"] and "Traceback" not in answer["error"]
    got, answer = server.json("/api/answers", file_of(ASTRONAUT))
    assert got == 422 and "load the picture again" in answer["error"]
    got, answer = server.json("/api/answers", b"x" * (app_module.LARGEST_CROP + 1))
    assert got == 413 and "scale it down" in answer["error"]
    assert server.call("/api/faces")[0] == 405 and server.call("/nowhere")[0] == 404


def test_other_host_names_are_refused(server):
    assert server.call("/", headers={"Host": "evil.example"})[0] == 400


def test_a_50_megapixel_picture_and_a_bomb(server):
    huge = np.zeros((7000, 7200, 3), np.uint8)
    huge[1000 : 1000 + 512 * 8, 1000 : 1000 + 512 * 8] = ASTRONAUT.repeat(8, 0).repeat(8, 1)
    body = file_of(huge, "JPEG")
    status, found = server.json("/api/faces", body)
    assert status == 200 and found["width"] == 7200 and found["faces"]
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 100_000
    status, answer = server.json("/api/faces", bomb.getvalue())
    assert status == 422 and "megapixels" in answer["error"]


def test_too_many_waiting_are_told_to_come_back(server, monkeypatch):
    monkeypatch.setattr(app_module, "MOST_WAITING", 0)
    status, answer = server.json("/api/faces", file_of(ASTRONAUT))
    assert status == 503 and "try again" in answer["error"]
    monkeypatch.undo()
    assert server.json("/api/faces", file_of(ASTRONAUT))[0] == 200, "places are given back"


def test_nothing_is_kept(server, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    photo = file_of(ASTRONAUT)
    assert len(photo) > 100_000, "large enough for a form parser to spool to disk"
    for _ in range(3):
        server.json("/api/faces", photo)
    assert list(tmp_path.iterdir()) == []


def test_answers_are_grouped_and_race_is_given_only_when_asked_for(server, crop):
    status, found = server.json("/api/answers", crop)
    assert status == 200
    titles = [b["title"] for b in found["blocks"]]
    assert "Male" not in [bar["label"] for b in found["blocks"] for bar in b["bars"]], "the gender has one place"
    assert titles[0] == "Gender" and "Hair" in titles and not any("Race" in t for t in titles)
    assert all(0 <= bar["value"] <= 1 for b in found["blocks"] for bar in b["bars"])
    assert found["map"].startswith("data:image/png")
    assert "box" not in found["record"] and len(found["record"]["answers"]) > 40
    _, with_race = server.json("/api/answers?race=1", crop)
    assert any("Race" in b["title"] for b in with_race["blocks"])
    assert json.loads(json.dumps(found)) == found


def test_each_part_can_be_switched_off_and_makes_a_difference(server, crop):
    def values(query: str) -> np.ndarray:
        _, found = server.json(f"/api/answers?{query}", crop)
        return np.array([p for a in found["record"]["answers"] for p in a["probabilities"].values()])

    whole = values("")
    np.testing.assert_array_equal(values("segmentation=1&correlation=1"), whole)
    for query in ("segmentation=0", "correlation=0", "llm=0"):
        assert np.abs(values(query) - whole).max() > 1e-4, query
    np.testing.assert_array_equal(values(""), whole)


def test_an_aligned_face_is_cut_from_the_photo_as_ask_cuts_it(service):
    """And comes back from the page with its own map: nothing is parsed or aligned a second time."""
    answerer = copy.copy(service.answerer)
    answerer.config = replace(answerer.config, data=replace(answerer.config.data, frame="aligned"))
    found = Service(answerer).faces(file_of(ASTRONAUT))["faces"][0]
    shown = decoded_face(base64.b64decode(found["crop"].split(",")[1]), service.size)
    parser = answerer.config.weights.parser
    box = locate(ASTRONAUT, partial(faces_in, parser_of(parser))).box
    asked = frame_face(ASTRONAUT, box, answerer.config.data, parser)
    assert shown.frame == asked.frame == "aligned"
    np.testing.assert_array_equal(shown.image, asked.image)
    np.testing.assert_array_equal(shown.mask, asked.mask)


def test_without_correlation_no_score_speaks_to_another(service):
    answerer = copy.copy(service.answerer)
    n = len(answerer.vocabulary)
    answerer.constants = answerer.constants._replace(relations=Relations(np.ones((n, n)), np.ones(n)))
    off = Service(answerer)._switched(Switches(correlation=False)).constants
    assert off.relations is None and (off.graph == np.eye(n)).all()


def test_questions_in_words_stream_or_answer_at_once(server, crop):
    def lines(question: str):
        status, text, _ = server.call(f"/api/ask?question={question.replace(' ', '%20')}", crop)
        return status, [json.loads(line) for line in text.decode().splitlines()]

    status, said = lines("Is this person smiling?")
    assert status == 200 and len(said) == 1 and said[0]["done"] and said[0]["text"].split()[0] in ("Yes", "No")
    assert said[0]["note"] == "answered: Is this person smiling?"
    status, said = lines("Describe this face.")
    assert status == 200 and said[-1]["done"]
    grown = [item["text"] for item in said]
    assert all(len(b) >= len(a) or "\ufffd" in a for a, b in zip(grown, grown[1:]))
    assert lines(" ")[0] == 422 and lines("x" * 1001)[0] == 422


def test_the_card_is_a_picture(server, crop):
    status, drawn, headers = server.call("/api/card", crop)
    assert status == 200 and drawn.startswith(b"\x89PNG") and headers["content-type"] == "image/png"


def test_why_is_a_picture_and_examples_are_faces(server, crop):
    status, drawn, headers = server.call("/api/why?question=Smiling&llm=0", crop)
    assert status == 200 and drawn.startswith(b"\x89PNG") and headers["content-type"] == "image/png"
    status, answer = server.json("/api/why?question=Smilling", crop)
    assert status == 422 and "did you mean 'Smiling'" in answer["error"]
    for name in ("portrait", "hat", "beard"):
        status, file, _ = server.call(f"/examples/{name}")
        assert status == 200 and server.json("/api/faces?whole=1", file)[0] == 200
    assert server.call("/examples/..%2Fpage.html")[0] in (404, 422)


@pytest.mark.slow
def test_a_crowd_of_100_is_served(server, crop):
    photo = file_of(ASTRONAUT)
    calls = [("/api/answers", crop)] * 80 + [("/api/faces", photo)] * 20
    with ThreadPoolExecutor(100) as pool:
        found = list(pool.map(lambda call: server.json(*call), calls))
    assert [status for status, _ in found] == [200] * 100
    assert all(answer == found[0][1] for _, answer in found[:80])
    assert all(answer == found[80][1] for _, answer in found[80:])


def test_the_service_checks_questions(service):
    with pytest.raises(UserError, match="write a question"):
        list(service.ask(grey_face(service), "  ", Switches()))
    for other in (encoded(np.zeros((service.size, service.size, 3), np.uint8)), grey_face(service, 3 * service.size)):
        with pytest.raises(UserError, match="load the picture again"):
            service.answers(other, Switches())


def test_the_command_names_its_mistakes(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["demo-server", "--port", port]) == 2
    assert f"port {port}" in capsys.readouterr().err
    assert main(["demo-server", "--port", "0", "--checkpoint", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_model_of_stage_1_answers_by_its_head_and_says_so(service):
    from fi_jax.demo.app import page

    answerer = copy.copy(service.answerer)
    config = answerer.config
    answerer.config = replace(config, train=replace(config.train, stage="align"))
    first = Service(answerer)
    crop = grey_face(first)
    (said,) = first.ask(crop, "Describe this face.", Switches())
    assert said["done"] and said["text"]
    with pytest.raises(UserError, match="stage 2"):
        list(first.ask(crop, "What colour are the eyes?", Switches()))
    assert 'value="1" disabled' in page(answerer.is_instruction_tuned) and 'value="1" checked' in page(
        service.answerer.is_instruction_tuned
    )
    assert "{{llm}}" not in page(True) and "{{head}}" not in page(False)


def test_pages_of_others_must_not_send_pictures(server):
    own = f"http://127.0.0.1:{server.port}"
    photo = file_of(ASTRONAUT)
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": f"http://127.0.0.1:{server.port + 1}"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        status, text, _ = server.call("/api/faces", photo, headers)
        assert status == 403 and b"Another page" in text, headers
    assert server.call("/api/faces", photo, {"Origin": own, "Sec-Fetch-Site": "same-origin"})[0] == 200


def test_every_answer_forbids_guessing_and_referrers(server):
    for path, headers in (("/", {}), ("/nowhere", {}), ("/", {"Host": "evil.example"})):
        got = server.call(path, headers=headers)[2]
        assert got["x-content-type-options"] == "nosniff" and got["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("hosts", "everywhere", "name", "known"),
    [
        (("localhost",), False, "localhost:7860", True),
        (("::1",), False, "[::1]:7860", True),
        (("localhost",), False, "192.168.1.5:7860", False),
        (("localhost",), True, "192.168.1.5:7860", True),
        (("localhost",), True, "[fe80::1]:7860", True),
        (("localhost",), True, "evil.example", False),
        (("localhost",), True, "", False),
        (("MyBox",), False, "mybox:7860", True),
        # What no browser sends.
        (("localhost",), True, "[::1", False),
        (("localhost",), False, "evil.example@localhost", False),
        (("localhost",), False, "localhost/evil.example", False),
    ],
)
def test_with_every_address_open_names_are_still_checked(hosts, everywhere, name, known):
    from starlette.datastructures import Headers

    from fi_jax.demo.guard import Guard

    refused = Guard(None, hosts, everywhere)._refusal("GET", Headers({"host": name}))
    assert (refused is None) == known


def test_an_open_address_says_what_it_exposes(capsys, monkeypatch):
    from types import SimpleNamespace

    started = []
    monkeypatch.setattr("fi_jax.inference.answerer.load_answerer", lambda model: None)
    monkeypatch.setattr("fi_jax.demo.service.Service", lambda answerer: SimpleNamespace(warm_up=lambda: None))
    monkeypatch.setattr("fi_jax.demo.app.make_app", lambda *_, any_address: started.append(any_address))
    monkeypatch.setattr("fi_jax.demo.guard.make_server", lambda app: SimpleNamespace(run=lambda sockets: None))
    for host, exposes in (("127.0.0.1", False), ("0.0.0.0", True)):
        assert main(["demo-server", "--port", "0", "--host", host]) == 0
        said = capsys.readouterr().out
        assert ("no login, no encryption" in said) == exposes and ("any address of this machine" in said) == exposes
    assert started == [False, True]


def _slow_upload(server, length: int = 100_000) -> socket.socket:
    link = socket.create_connection(("127.0.0.1", server.port))
    link.sendall(
        f"POST /api/faces HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n".encode() + b"x" * 10
    )
    return link


def test_slow_uploads_keep_nobody_waiting_and_are_ended(server, monkeypatch):
    monkeypatch.setattr(app_module, "PIECE_SECONDS", 1)
    links = [_slow_upload(server) for _ in range(5)]
    assert server.json("/api/faces", file_of(ASTRONAUT))[0] == 200
    for link in links:
        link.settimeout(20)
        assert b" 408 " in link.recv(1000)
        link.close()


def test_half_sent_heads_are_closed_and_one_address_is_bounded(server, monkeypatch):
    from fi_jax.demo import guard

    monkeypatch.setattr(guard, "HEAD_SECONDS", 1.5)
    links = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(6)]
    for link in links:
        link.sendall(b"POST /api/faces HTTP/1.1\r\nHost: 127")
        link.settimeout(20)
    assert [link.recv(10) for link in links] == [b""] * 6
    monkeypatch.setattr(guard, "HEAD_SECONDS", 10.0)
    monkeypatch.setattr(guard, "MOST_CONNECTIONS", 2)
    kept = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
    more = socket.create_connection(("127.0.0.1", server.port))
    more.settimeout(20)
    assert more.recv(10) == b""
    for link in (*kept, *links, more):
        link.close()
    monkeypatch.undo()
    assert server.call("/")[0] == 200


def test_answers_that_nobody_waits_for_are_dropped(server, service, crop, monkeypatch):
    """The first is being computed when its visitor leaves; those behind it never begin."""
    begun, free = [], threading.Event()

    def slow(data, switches):
        begun.append(1)
        free.wait(30)
        return {}

    monkeypatch.setattr(service, "answers", slow)
    monkeypatch.setattr(app_module, "LOOK_SECONDS", 0.05)
    links = []
    for _ in range(4):
        link = socket.create_connection(("127.0.0.1", server.port))
        head = f"POST /api/answers HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(crop)}\r\n\r\n"
        link.sendall(head.encode() + crop)
        links.append(link)
    deadline = time.monotonic() + 20
    while not begun:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for link in links:
        link.close()
    time.sleep(30 * app_module.LOOK_SECONDS)
    free.set()
    monkeypatch.undo()
    assert server.call("/")[0] == 200 and server.json("/api/answers", crop)[0] == 200
    assert len(begun) == 1


def test_it_stops_within_seconds_with_an_open_upload(service):
    from running import Server

    running = Server(service)
    link = _slow_upload(running)
    deadline = time.monotonic() + 20
    while not any(one.cycle for one in running.server.server_state.connections):
        assert time.monotonic() < deadline, "the upload does not begin"
        time.sleep(0.02)
    start = time.monotonic()
    running.stop()
    assert not running.thread.is_alive() and time.monotonic() - start < 5
    assert b" 503 " in link.recv(1000)
    link.close()


def test_thin_pictures_are_not_padded_to_squares(server):
    thin = file_of(np.zeros((1, 28000, 3), np.uint8))
    status, answer = server.json("/api/faces?whole=1", thin)
    assert status == 422 and "28000x1" in answer["error"]
    assert server.json("/api/faces", thin)[0] == 422
