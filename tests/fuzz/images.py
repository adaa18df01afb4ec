"""Image files of every format with mutated bytes, and archives and documents under the name of an image."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

from PIL import Image, ImageCms, ImageDraw

from tests.fuzz import mutations
from tests.fuzz.tally import Tally
from wcl_core.data.image_file import ENDINGS, FORMATS, UnreadableError, read_image

COUNT = 10_000
SLICE = 150
_SIDE = 16
_SLOW_SECONDS = 20.0  # for the largest image that is allowed, on a busy machine
_MAX_GROWTH = 1_500 << 20  # bytes; an image of 100 million pixels, with a copy in another mode


def run(count: int, seed: int, tally: Tally) -> None:
    """Read `count` mutated files."""
    valid = _valid()
    with (
        tempfile.TemporaryDirectory(prefix="wcl-fuzz-") as folder,
        warnings.catch_warnings(),
        tally.memory_within(_MAX_GROWTH, seed),
    ):
        warnings.simplefilter("ignore")  # of decoders, about damaged bytes
        for each in range(seed, seed + count):
            _case(Path(folder), valid, each, tally)


def _case(folder: Path, valid: dict[str, bytes], seed: int, tally: Tally) -> None:
    generator = random.Random(seed)
    name = generator.choice(list(valid))
    path = folder / f"image{generator.choice(sorted(ENDINGS))}"
    content = mutations.of_bytes(generator, valid[name])
    path.write_bytes(content)
    is_preview, is_whole = generator.random() < 0.3, generator.random() < 0.5
    began = time.process_time()
    try:
        image, facts = read_image(path, _SIDE, is_preview=is_preview, file=io.BytesIO(content) if is_whole else None)
        tally.add("read")
        if (image.mode, image.size) != ("RGB", (_SIDE, _SIDE)) or facts.format not in FORMATS:
            tally.fail(f"{name}: an image of mode {image.mode}", seed, f"{image.size}, {facts}")
    except UnreadableError as error:
        tally.add("refused")
        if str(folder) in str(error):
            tally.fail(f"{name}: a message with a path", seed, str(error))
    except Exception as error:
        tally.fail(f"{name}: {type(error).__name__}", seed, str(error))
    if (seconds := time.process_time() - began) > _SLOW_SECONDS:
        tally.fail(f"{name}: over {_SLOW_SECONDS:g} s", seed, f"{seconds:.1f} s")


def _valid() -> dict[str, bytes]:
    """Return one file for each format and way of storing pixels."""
    colour = Image.linear_gradient("L").resize((24, 20)).convert("RGB")
    ImageDraw.Draw(colour).ellipse((4, 4, 18, 14), fill=(200, 30, 90))
    grey, exif = colour.convert("L"), Image.Exif()
    exif[274] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    files = {
        "jpeg": _saved(colour, "JPEG", exif=exif, icc_profile=profile),
        "progressive": _saved(colour, "JPEG", progressive=True),
        "cmyk": _saved(colour.convert("CMYK"), "JPEG"),
        "png": _saved(colour, "PNG", icc_profile=profile),
        "png alpha": _saved(colour.convert("RGBA"), "PNG", exif=exif),
        "png palette": _saved(colour.quantize(16), "PNG", transparency=3),
        "png 16": _saved(grey.convert("I;16"), "PNG"),
        "apng": _saved(colour, "PNG", save_all=True, append_images=[grey.convert("RGB")]),
        "webp": _saved(colour, "WEBP"),
        "webp lossless": _saved(colour.convert("RGBA"), "WEBP", lossless=True),
        "webp frames": _saved(colour, "WEBP", save_all=True, append_images=[grey.convert("RGB")]),
        "gif": _saved(colour, "GIF", save_all=True, append_images=[grey.convert("RGB")]),
        "bmp": _saved(colour, "BMP"),
        "bmp 1": _saved(colour.convert("1"), "BMP"),
        "ppm": _saved(colour, "PPM"),
        "pgm": _saved(grey, "PPM"),
        "tiff": _saved(colour, "TIFF", exif=exif),
        "tiff 16": _saved(grey.convert("I;16"), "TIFF"),
        "tiff float": _saved(grey.convert("F"), "TIFF"),
    }
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "group4"):
        image = colour.convert("1") if compression == "group4" else colour
        files[f"tiff {compression}"] = _saved(image, "TIFF", compression=compression)
    return files | _others(files["png"])


def _others(content: bytes) -> dict[str, bytes]:
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.png", content)
    with tarfile.open(fileobj=tarred, mode="w:gz") as tar:
        member = tarfile.TarInfo("image.png")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return {
        "zip": zipped.getvalue(),
        "tar": tarred.getvalue(),
        "gzip": gzip.compress(content * 50),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 20\n%%EndComments\nshowpage\n%%EOF\n",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/hostname"/></svg>',
    }


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
