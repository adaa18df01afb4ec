"""Reading one image file: the right pixels of every mode, limits, and no decoder but those of images."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from wcl_core.data import decoding, image_file
from wcl_core.data.image_file import UnreadableError, read_image
from wcl_core.spec_files import SpecFileError, read_spec

Colour = tuple[int, int, int]
SIDE = 8
REPOSITORY = Path(__file__).parents[3]


def pixels(path: Path) -> np.ndarray[Any, Any]:
    """The pixels at the file's own size, (SIDE, SIDE, 3)."""
    return np.asarray(read_image(path, SIDE)[0]).astype(int)


def png(rows: bytes, side: int, bits: int, kind: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of rows that have their filter bytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", side, side, bits, kind, 0, 0, 0)
    inner = b"".join(chunk(*each) for each in chunks)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + inner + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def png_of(samples: list[int], bits: int, kind: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file in one colour."""
    packed = struct.pack(">" + ("H" if bits == 16 else "B") * len(samples), *samples)
    return png((b"\0" + packed * SIDE) * SIDE, SIDE, bits, kind, *chunks)


def saved(image: Image.Image, name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def flat(mode: str, colour: Any) -> Image.Image:
    return Image.new(mode, (SIDE, SIDE), colour)


def noise(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def wide(value: int, kind: str) -> Image.Image:
    return Image.fromarray(np.full((SIDE, SIDE), value, kind))


def palette(transparency: bytes | int | None) -> bytes:
    image = flat("P", 1)
    image.putpalette([9, 9, 9, 200, 100, 50])
    return saved(image, "PNG", **({} if transparency is None else {"transparency": transparency}))


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile() -> bytes:
    """A profile whose red is our green: only a reader that uses it sees the right colours."""
    content = bytearray(srgb_profile())
    table = {}
    for index in range(int.from_bytes(content[128:132], "big")):
        place = 132 + 12 * index
        table[bytes(content[place : place + 4])] = place
    red, green = table[b"rXYZ"], table[b"gXYZ"]
    content[red + 4 : red + 12], content[green + 4 : green + 12] = (
        content[green + 4 : green + 12],
        content[red + 4 : red + 12],
    )
    at = int.from_bytes(content[table[b"desc"] + 4 : table[b"desc"] + 8], "big")
    size = int.from_bytes(content[table[b"desc"] + 8 : table[b"desc"] + 12], "big")
    name = content[at : at + size].replace(b"\0s\0R\0G\0B", b"\0o\0t\0h\0r")
    content[at : at + size] = name
    return bytes(content)


GREY_TABLE = {
    "1": (saved(flat("1", 1), "PNG"), (255, 255, 255)),
    "L": (saved(flat("L", 77), "PNG"), (77, 77, 77)),
    "L of 2 bits": (png((b"\0" + b"\xaa" * 2) * SIDE, SIDE, 2, 0), (170, 170, 170)),
    "LA, a quarter opaque": (saved(flat("LA", (0, 64)), "PNG"), (191, 191, 191)),
    "L with a transparent value": (saved(flat("L", 3), "PNG", transparency=3), (255, 255, 255)),
    "I;16 PNG": (png_of([0x8000], 16, 0), (128, 128, 128)),
    "I;16 PNG, white": (png_of([0xFFFF], 16, 0), (255, 255, 255)),
    "I;16 PNG of 12 bits, dark": (png_of([4095], 16, 0), (16, 16, 16)),
    "I;16 PNG with a transparent value": (png_of([500], 16, 0, (b"tRNS", struct.pack(">H", 500))), (255, 255, 255)),
    "LA PNG of 16 bits": (png_of([0x4000, 0xFFFF], 16, 4), (64, 64, 64)),
    "I;16 TIFF": (saved(wide(0x4000, "<u2"), "TIFF"), (64, 64, 64)),
    "I;16B TIFF": (saved(wide(0x4000, ">u2"), "TIFF"), (64, 64, 64)),
    "I;16 TIFF, white is zero": (saved(wide(0x4000, "<u2"), "TIFF", tiffinfo={262: 0}), (191, 191, 191)),
    "I;16 TIFF of 12 bits": (saved(wide(2048, "<u2"), "TIFF", tiffinfo={280: 0, 281: 4095}), (128, 128, 128)),
    "I;16 TIFF, its range is wrong": (saved(wide(0x4000, "<u2"), "TIFF", tiffinfo={280: 0, 281: 255}), (64, 64, 64)),
    "I TIFF with a range": (saved(wide(500, "<i4"), "TIFF", tiffinfo={280: 0, 281: 1000}), (128, 128, 128)),
    "L PGM": (b"P5 8 8 255\n" + b"\x50" * 64, (80, 80, 80)),
    "L PGM up to 15": (b"P5 8 8 15\n" + b"\x05" * 64, (85, 85, 85)),
    "I PGM up to 4095": (b"P5 8 8 4095\n" + b"\x08\x00" * 64, (128, 128, 128)),
    "I PGM up to 65535": (b"P5 8 8 65535\n" + b"\x40\x00" * 64, (64, 64, 64)),
    "1 PBM": (b"P4 8 8\n" + b"\0" * 8, (255, 255, 255)),
}
COLOUR_TABLE = {
    "P": (palette(None), (200, 100, 50)),
    "P, opaque": (palette(b"\0\xff"), (200, 100, 50)),
    "P, transparent": (palette(b"\xff\0"), (255, 255, 255)),
    "P, half transparent": (palette(b"\xff\x80"), (227, 177, 152)),
    "P, one transparent colour": (palette(1), (255, 255, 255)),
    "GIF": (saved(flat("RGB", (200, 100, 50)), "GIF"), (200, 100, 50)),
    "RGB": (saved(flat("RGB", (200, 100, 50)), "PNG"), (200, 100, 50)),
    "RGB with a transparent colour": (saved(flat("RGB", (1, 2, 3)), "PNG", transparency=(1, 2, 3)), (255, 255, 255)),
    "RGBA, opaque": (saved(flat("RGBA", (200, 100, 50, 255)), "PNG"), (200, 100, 50)),
    "RGBA, junk below transparent pixels": (saved(flat("RGBA", (200, 0, 50, 0)), "PNG"), (255, 255, 255)),
    "RGBA, half transparent": (saved(flat("RGBA", (200, 100, 50, 128)), "PNG"), (227, 177, 152)),
    "RGB PNG of 16 bits": (png_of([0xC8C8, 0x6464, 0x3232], 16, 2), (200, 100, 50)),
    "RGBA PNG of 16 bits": (png_of([0xC8C8, 0x6464, 0x3232, 0], 16, 6), (255, 255, 255)),
    "RGB PPM": (b"P6 8 8 255\n" + bytes((200, 100, 50)) * 64, (200, 100, 50)),
    "RGB PPM of 16 bits": (b"P6 8 8 65535\n" + struct.pack(">3H", 51400, 25700, 12850) * 64, (200, 100, 50)),
    "RGB BMP": (saved(flat("RGB", (200, 100, 50)), "BMP"), (200, 100, 50)),
    "RGB TIFF": (saved(flat("RGB", (200, 100, 50)), "TIFF"), (200, 100, 50)),
    "RGBA TIFF": (saved(flat("RGBA", (200, 100, 50, 0)), "TIFF"), (255, 255, 255)),
    "CMYK TIFF": (saved(flat("CMYK", (55, 155, 205, 0)), "TIFF"), (200, 100, 50)),
    "CMYK JPEG": (saved(flat("CMYK", (55, 155, 205, 0)), "JPEG", quality=100), (200, 100, 50)),
    "JPEG": (saved(flat("RGB", (200, 100, 50)), "JPEG", quality=100), (200, 100, 50)),
    "WebP": (saved(flat("RGB", (200, 100, 50)), "WEBP", lossless=True), (200, 100, 50)),
    "WebP, transparent": (saved(flat("RGBA", (200, 100, 50, 0)), "WEBP", lossless=True), (255, 255, 255)),
    "sRGB profile": (
        saved(
            flat("RGB", (200, 100, 50)),
            "PNG",
            icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        ),
        (200, 100, 50),
    ),
    "profile with red and green swapped": (
        saved(flat("RGB", (200, 100, 50)), "PNG", icc_profile=swapped_profile()),
        (100, 200, 50),
    ),
    "damaged profile": (saved(flat("RGB", (200, 100, 50)), "PNG", icc_profile=b"junk" * 50), (200, 100, 50)),
    "profile of another mode": (saved(flat("L", 50), "PNG", icc_profile=swapped_profile()), (50, 50, 50)),
}


@pytest.mark.parametrize("case", [*GREY_TABLE, *COLOUR_TABLE])
def test_every_mode_gives_its_right_pixels(tmp_path: Path, case: str) -> None:
    content, colour = (GREY_TABLE | COLOUR_TABLE)[case]
    (tmp_path / "image").write_bytes(content)
    assert np.abs(pixels(tmp_path / "image") - colour).max() <= 1
    in_memory = read_image(Path("absent"), SIDE, file=io.BytesIO(content))[0]
    assert np.array_equal(np.asarray(in_memory), pixels(tmp_path / "image"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (saved(wide(0, "<f4"), "TIFF"), "floating-point numbers"),
        (b"Pf 8 8 -1.0\n" + b"\0" * 256, "floating-point numbers"),
        (saved(wide(60_000, "<i4"), "TIFF"), "32-bit integers, and the file declares no range"),
        (saved(wide(60_000, "<i4"), "TIFF", tiffinfo={280: 0, 281: 255}), "declares no range"),
        (saved(flat("L", 5), "TIFF", tiffinfo={339: 2}), "signed integers"),
        (saved(flat("LAB", (50, 0, 0)), "TIFF"), "colour mode LAB is not supported"),
        (b"", "the file is empty"),
        (
            b"\0\0\0\x18ftypheic" + b"\0" * 64,
            "a HEIC or AVIF image or a video, whatever its ending; convert it to JPEG",
        ),
        (b"<html>404</html>", "none of the formats JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM"),
        (saved(flat("RGB", 0), "JPEG2000"), "none of the formats"),
        (saved(flat("RGB", 0), "TGA"), "none of the formats"),
        (saved(flat("RGB", 0), "ICO"), "none of the formats"),
        (saved(noise(40), "JPEG")[:-40], "truncated"),
        (saved(noise(40), "PNG")[:-40], "truncated"),
    ],
)
@pytest.mark.parametrize("is_preview", [False, True])
def test_what_cannot_be_read_well_is_refused_by_name(
    tmp_path: Path, content: bytes, reason: str, is_preview: bool
) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match=reason) as caught:
        read_image(path, SIDE, is_preview=is_preview)
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(UnreadableError) as in_memory:
        read_image(path, SIDE, is_preview=is_preview, file=io.BytesIO(content))
    assert str(in_memory.value) == str(caught.value)


def quarters() -> Image.Image:
    """Four colours: red, green, blue, white, row by row."""
    image = Image.new("RGB", (32, 32), (255, 255, 255))
    for colour, corner in (((255, 0, 0), (0, 0)), ((0, 255, 0), (16, 0)), ((0, 0, 255), (0, 16))):
        image.paste(colour, (*corner, corner[0] + 16, corner[1] + 16))
    return image


UPRIGHT = ["red", "green", "blue", "white"]
STORED = {  # how a camera that is held this way stores the upright scene
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("is_preview", [False, True])
def test_the_orientation_of_cameras_is_applied(tmp_path: Path, orientation: int, name: str, is_preview: bool) -> None:
    turn = STORED[orientation]
    image = quarters() if turn is None else quarters().transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "image"
    path.write_bytes(saved(image, name, exif=exif))
    read, facts = read_image(path, 32, is_preview=is_preview)
    corners = [read.getpixel(place) for place in ((8, 8), (24, 8), (8, 24), (24, 24))]
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 1): "white"}
    assert [names[tuple(round(band / 255) for band in corner)] for corner in corners] == UPRIGHT  # type: ignore
    assert (image_file.ORIENTED in facts.notes) is (orientation != 1)


def test_the_facts_give_the_size_as_a_viewer_shows_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (640, 480)).save(tmp_path / "a.jpg", exif=exif)
    for is_preview in (False, True):
        facts = read_image(tmp_path / "a.jpg", 4, is_preview=is_preview)[1]
        assert (facts.format, facts.mode, facts.width, facts.height) == ("JPEG", "RGB", 480, 640)


def test_damaged_exif_data_turns_nothing(tmp_path: Path) -> None:
    flat("RGB", (200, 100, 50)).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.abs(pixels(tmp_path / "a.png") - (200, 100, 50)).max() == 0


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_frames_is_read(tmp_path: Path, name: str) -> None:
    frames = [flat("RGB", colour) for colour in ((200, 100, 50), (0, 0, 0), (1, 2, 3))]
    options = {"lossless": True} if name == "WEBP" else {}
    frames[0].save(tmp_path / "a", name, save_all=True, append_images=frames[1:], **options)
    assert np.abs(pixels(tmp_path / "a") - (200, 100, 50)).max() <= 1
    assert image_file.SEVERAL_FRAMES in read_image(tmp_path / "a", 8)[1].notes


@pytest.mark.parametrize(
    ("case", "mode", "note"),
    [
        ("I;16 PNG", "L, 16 bits", image_file.SIXTEEN_BITS),
        ("I PGM up to 4095", "L, 16 bits", image_file.SIXTEEN_BITS),
        ("RGB PNG of 16 bits", "RGB, 16 bits", image_file.SIXTEEN_BITS),
        ("RGB PPM of 16 bits", "RGB, 16 bits", image_file.SIXTEEN_BITS),
        ("I;16 PNG of 12 bits, dark", "L, 16 bits", image_file.DARK),
        ("RGBA, half transparent", "RGBA", image_file.TRANSPARENT),
        ("P, transparent", "P", image_file.TRANSPARENT),
        ("profile with red and green swapped", "RGB", image_file.CONVERTED),
        ("damaged profile", "RGB", image_file.PROFILE_IGNORED),
        ("P, opaque", "P", None),
        ("RGBA, opaque", "RGBA", None),
        ("sRGB profile", "RGB", None),
        ("I;16 TIFF of 12 bits", "L, 16 bits", image_file.SIXTEEN_BITS),
    ],
)
def test_what_was_done_to_an_image_is_noted(tmp_path: Path, case: str, mode: str, note: str | None) -> None:
    content = (GREY_TABLE | COLOUR_TABLE)[case][0]
    ending = {b"P5": "pgm", b"P6": "ppm", b"II": "tif"}.get(content[:2], "png")
    path = tmp_path / f"image.{ending}"
    path.write_bytes(content)
    facts = read_image(path, SIDE)[1]
    assert facts.mode == mode
    assert (note in facts.notes) if note else not facts.notes


def test_the_content_chooses_the_decoder_and_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(COLOUR_TABLE["RGB"][0])
    assert np.abs(pixels(tmp_path / "a.jpg") - (200, 100, 50)).max() == 0
    facts = read_image(tmp_path / "a.jpg", SIDE)[1]
    assert (facts.format, facts.notes) == ("PNG", (image_file.OTHER_ENDING,))


# --- only image decoders, within limits ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jpg", "a.eps", "a.png"])
def test_no_file_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Pillow gives PostScript to Ghostscript, the first `gs` of the path."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(UnreadableError, match="none of the formats"):
        read_image(tmp_path / name, SIDE)
    assert not (tmp_path / "started").exists()


def calls_of(tree: ast.AST) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.slow
def test_no_other_module_lets_bytes_choose_their_decoder() -> None:
    """An image is opened in one module, a spec file by a loader of plain values, a pickle by one that runs no code."""
    forbidden = {"Image.open", "torch.load", "np.load", "numpy.load", "pickle.load", "pickle.loads", "yaml.load"}
    forbidden |= {
        f"yaml.{name}" for name in ("load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all")
    }
    forbidden |= {"torchvision.io.read_image", "marshal.loads", "shelve.open"}
    calls = {
        (path.relative_to(REPOSITORY).as_posix(), call)
        for folder in ("wcl_core", "jobs", "api", "worker", "wcl_client")
        for path in (REPOSITORY / folder).rglob("*.py")
        for call in calls_of(ast.parse(path.read_text(encoding="utf-8"))) & forbidden
    }
    pickles = ("wcl_core/networks/imported.py", "torch.load")
    assert calls == {
        ("wcl_core/data/image_file.py", "Image.open"),
        ("wcl_core/spec_files.py", "yaml.load_all"),
        pickles,
    }
    tree = ast.parse((REPOSITORY / pickles[0]).read_text(encoding="utf-8"))
    loads = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == pickles[1]]
    assert all("weights_only=True" in map(ast.unparse, node.keywords) for node in loads)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.getcwd []", "!!python/name:os.getcwd", "!!python/tuple [1]"])
def test_a_spec_file_makes_no_object(tag: str, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(f"epochs: {tag}\n")
    with pytest.raises(SpecFileError, match="python"):
        read_spec(tmp_path / "spec.yaml")


def bomb(side: int) -> bytes:
    """A valid black PNG, small on the disk."""
    return png((b"\0" * (1 + 3 * side)) * side, side, 8, 2)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(b"", 20_000, 1, 0))
    for is_preview in (False, True):
        with pytest.raises(UnreadableError, match="20000x20000 pixels|400000000 pixels"):
            read_image(tmp_path / "a.png", SIDE, is_preview=is_preview)


@pytest.mark.process
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells the peak of the memory")
def test_many_large_images_cost_the_memory_of_one(tmp_path: Path) -> None:
    """Twelve images of 25 megapixels on many threads: 1.2 GB together, of which 400 MB are decoded at a time."""
    content = bomb(5000)
    for split, count in (("train", 10), ("test", 2)):
        for index in range(count):
            path = tmp_path / split / "a" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    program = (
        "import os, sys; os.cpu_count = lambda: 28\n"
        "from pathlib import Path\n"
        "from wcl_core.data import describe\n"
        "print(describe('bombs', 'folder', Path(sys.argv[1])).counts['train'])\n"
        "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    count, peak_kib = map(int, done.stdout.split())
    assert count == 10
    assert peak_kib < 700 << 10


def test_a_file_that_is_read_again_and_again_is_refused(tmp_path: Path) -> None:
    """A format may refer to the same bytes from many places, and a small file then fills the memory."""
    (tmp_path / "a").write_bytes(b"x" * 1_000_000)
    with image_file._LimitedFile(io.FileIO(tmp_path / "a")) as file:
        for _ in range(9):
            file.seek(0)
            file.read()
        file.seek(0)
        with pytest.raises(UnreadableError, match="read the file eight times"):
            file.read()


def test_a_tiff_whose_strips_overlap_is_refused(tmp_path: Path) -> None:
    whole = saved(noise(64).convert("L"), "TIFF", compression="tiff_lzw", strip_size=64)
    place = Image.open(io.BytesIO(whole)).tag_v2  # type: ignore[attr-defined]
    assert len(place[279]) == 64
    old, new = struct.pack("<64H", *place[279]), struct.pack("<64H", *[len(whole) - 200] * 64)
    assert whole.count(old) == 1
    (tmp_path / "a.tif").write_bytes(whole)
    assert read_image(tmp_path / "a.tif", SIDE)[1].mode == "L"
    (tmp_path / "a.tif").write_bytes(whole.replace(old, new))
    with pytest.raises(UnreadableError, match="strips or tiles overlap"):
        read_image(tmp_path / "a.tif", SIDE)


def test_a_jpeg_of_too_many_scans_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg", progressive=True)
    assert read_image(tmp_path / "a.jpg", SIDE)[1].format == "JPEG"
    monkeypatch.setattr(image_file, "_MAX_SCANNED", 5 * 64 * 64)
    for file in (None, io.BytesIO((tmp_path / "a.jpg").read_bytes())):
        with pytest.raises(UnreadableError, match="too many scans"):
            read_image(tmp_path / "a.jpg", SIDE, file=file)


def test_an_image_that_takes_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P3 2000 2000 255\n" + b"0 " * 12_000_000)
    monkeypatch.setattr(image_file, "MAX_SECONDS", 0.1)
    with pytest.raises(UnreadableError, match=r"more than 0\.1 s of processor time"):
        read_image(tmp_path / "a.ppm", SIDE)


@pytest.mark.parametrize("limit", [decoding._WHOLE_BYTES, 0])
@pytest.mark.parametrize("name", ["JPEG", "PNG"])
def test_the_digest_is_that_of_the_bytes_that_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, limit: int
) -> None:
    """A file that another one replaces in the meantime gives the digest and the pixels of the same bytes."""
    path, before, after = tmp_path / "a", saved(flat("RGB", (9, 9, 9)), name), saved(flat("RGB", (99, 99, 99)), name)
    path.write_bytes(before)
    monkeypatch.setattr(decoding, "_WHOLE_BYTES", limit)
    read_image_then = decoding.read_image

    def exchange_then_read(*arguments: Any, **options: Any) -> Any:
        (tmp_path / "b").write_bytes(after)
        (tmp_path / "b").rename(path)
        return read_image_then(*arguments, **options)

    monkeypatch.setattr(decoding, "read_image", exchange_then_read)
    read, images = decoding.read_file(path, decoding.Wish(SIDE))
    assert images is not None
    assert (read.digest, int(images.min()), int(images.max())) == (hashlib.sha256(before).digest(), 9, 9)


def test_a_file_of_too_many_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat("RGB", 0).save(tmp_path / "a.png")
    monkeypatch.setattr(image_file, "MAX_BYTES", 20)
    with pytest.raises(UnreadableError, match="bytes; expected at most 20"):
        read_image(tmp_path / "a.png", SIDE)


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: content[:-1]])
def test_truncated_files_of_every_format_are_found(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    for name in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"):
        content = saved(noise(40), name)
        is_complete_enough = name in ("JPEG", "PNG", "TIFF") and damage(content) == content[:-1]
        (tmp_path / name).write_bytes(damage(content))
        if not is_complete_enough:  # the last byte of these is not one of the pixels
            with pytest.raises(UnreadableError):
                read_image(tmp_path / name, SIDE, is_preview=True)
