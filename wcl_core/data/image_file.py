"""One image file: the formats and modes that are read, and the pixels that result.

Every place that opens an image file calls `read_image`: training, packing, descriptions and sample pictures.  The
content chooses the decoder, never the name, and only among `FORMATS`: none of these starts a program or reads another
file.  docs/datasets.md has the table of what is read.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
from PIL import (
    ExifTags,
    Image,
    ImageCms,
    ImageFile,
    ImageOps,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_ENDINGS: Final = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
ENDINGS: Final = frozenset(ending for endings in _ENDINGS.values() for ending in endings)
OTHER_FORMATS: Final = frozenset(  # of images, which are not read
    {".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".svg"}
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"}
)
RULES_VERSION: Final = 2  # of the pixels that a file gives; version 1 had no rules beyond those of the decoders

BACKGROUND: Final = (255, 255, 255)  # under transparent pixels
MAX_BYTES: Final = 1 << 30  # of a file
MAX_PIXELS: Final = 100_000_000  # of an image, and of all images that a run decodes at one time
MAX_SECONDS: Final = 60.0  # of processor time for one image
_CLOCK_BYTES: Final = 1 << 10  # read between two looks at the clock
_MAX_SCANNED: Final = 4_000_000_000  # pixels times scans of a progressive JPEG
_MAX_PROFILE_BYTES: Final = 4 << 20

ORIENTED: Final = "their EXIF orientation is applied"
TRANSPARENT: Final = "transparent pixels are composed on white"
SIXTEEN_BITS: Final = "more than 8 bits a sample are scaled to 8, from the range that the file declares"
DARK: Final = "the samples use less than an eighth of the range that the file declares, so the images are dark"
CONVERTED: Final = "colours are converted from the file's colour profile to sRGB"
PROFILE_IGNORED: Final = "the colour profile cannot be used and is ignored"
SEVERAL_FRAMES: Final = "only the first of several frames or pages is read"
OTHER_ENDING: Final = "the name has the ending of another format"
_NEW_PIXELS: Final = frozenset({ORIENTED, TRANSPARENT, SIXTEEN_BITS, CONVERTED})  # version 1 gave other pixels

_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PLAIN_MODES: Final = frozenset({"1", "L", "P", "RGB", "CMYK", "YCbCr"})
_ALPHA_MODES: Final = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_PROFILE_SPACES: Final = {"1": "GRAY", "L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_BITS_TAG, _PHOTOMETRIC_TAG, _SAMPLE_FORMAT_TAG = 258, 262, 339
_LENGTH_TAGS = (279, 325)  # bytes of each strip, of each tile
_RANGE_TAGS = ((340, 341), (280, 281))  # SMinSampleValue, SMaxSampleValue; MinSampleValue, MaxSampleValue

# Image.open finds these two without importing the plugins of all other formats.
_PLUGINS = (TiffImagePlugin, WebPImagePlugin)
# Blocks of this size go back to the system at once. Each thread keeps smaller ones, so that a few large images on
# many threads would hold the memory of as many images as there are threads.
Image.core.set_block_size(64 << 20)  # type: ignore[attr-defined]  # documented, but not in the stubs
# MAX_PIXELS takes the place of Pillow's own warning.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadableError(ValueError):
    """The file is damaged, too large, or an image whose pixels cannot be read well; the message gives the reason."""


@dataclass(frozen=True)
class Facts:
    """The properties of an image file.

    Attributes:
        format: one of `FORMATS`.
        mode: the colour mode in the file, such as `RGB` or `L, 16 bits`.
        width, height: in pixels, as a viewer shows the image.
        notes: sentences of this module about the reading.
    """

    format: str
    mode: str
    width: int
    height: int
    notes: tuple[str, ...] = ()

    @property
    def has_new_pixels(self) -> bool:
        """Whether version 1 of the rules gave other pixels."""
        return not _NEW_PIXELS.isdisjoint(self.notes)


def read_image(
    path: Path, side: int, *, is_preview: bool = False, file: io.FileIO | io.BytesIO | None = None
) -> tuple[Image.Image, Facts]:
    """Read an image file as a square: the shorter side is scaled to `side`, then centre crop.

    Args:
        path: the file.
        side: of the result, in pixels.
        is_preview: decode a large JPEG at a reduced size: faster, and all of the file is still checked.
        file: the open file, or all of its bytes; it is closed.  By default, the file is opened.

    Returns:
        The image in mode RGB, and the facts of its file.

    Raises:
        UnreadableError: as the class says.
    """
    try:
        with _limited(file or io.FileIO(path)) as limited, Image.open(limited, formats=FORMATS) as opened:
            _check_size(opened, limited)
            with _budget.reserved(opened.width * opened.height):
                return _read(opened, path.suffix.lower(), side, is_preview)
    except UnreadableError:
        raise
    except UnidentifiedImageError:
        raise UnreadableError(_unidentified(path)) from None
    except MemoryError:
        raise
    except Exception as error:  # image decoders raise anything on damaged bytes
        # The message must not show where the file lies on this machine.
        reason = str(error).replace(str(path), path.name)
        if "truncated" in reason.lower():
            raise UnreadableError("the file is truncated: its end is missing") from error
        raise UnreadableError(f"the file is damaged ({type(error).__name__}: {reason})") from error


def _read(opened: ImageFile.ImageFile, ending: str, side: int, is_preview: bool) -> tuple[Image.Image, Facts]:
    notes: list[str] = []
    width, height = opened.size
    is_wide = _is_wide(opened)
    mode = _mode_name(opened, is_wide)
    file_format = "JPEG" if opened.format == "MPO" else opened.format or ""
    if ending not in _ENDINGS[file_format]:
        notes.append(OTHER_ENDING)
    if opened.format != "MPO" and getattr(opened, "is_animated", False):
        notes.append(SEVERAL_FRAMES)
    orientation = _orientation(opened)  # before `load`, which turns a TIFF
    if is_preview:
        opened.draft("RGB", (2 * side, 2 * side))
    opened.load()
    if is_wide:
        notes.append(SIXTEEN_BITS)
    image = _rgb(opened, notes)
    if orientation in _TURNS:
        notes.append(ORIENTED)
        if orientation > 4:
            width, height = height, width
        if file_format != "TIFF":
            image = image.transpose(_TURNS[orientation])
    square = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
    return square, Facts(file_format, mode, width, height, tuple(notes))


# --- limits --------------------------------------------------------------------------------------------------------


def _unidentified(path: Path) -> str:
    """Return why no decoder reads a file, from its first bytes."""
    begin = None
    with contextlib.suppress(OSError), path.open("rb") as file:
        begin = file.read(12)
    if begin == b"":
        return "the file is empty"
    if begin and begin[4:8] == b"ftyp":
        return "it is a HEIC or AVIF image or a video, whatever its ending; convert it to JPEG"
    return f"its content is none of the formats {', '.join(FORMATS)}"


def _limited(file: io.FileIO | io.BytesIO) -> BinaryIO:
    """Return the file with limits on its reads.

    A decoder takes the pixels of a small JPEG in one read, so these limits have no effect on it; but it reads the
    header byte by byte, and the limits cost as much as that.
    """
    if isinstance(file, io.BytesIO):
        content = file.getbuffer()
        if len(content) <= ImageFile.MAXBLOCK and bytes(content[:3]) == b"\xff\xd8\xff":
            return file
    return _LimitedFile(file)


class _LimitedFile(io.BufferedReader):
    """A file whose reads end once the image has taken too much time, or has read its bytes again and again.

    A hostile TIFF can refer to the same bytes from thousands of places: a small file that fills the memory.
    """

    def __init__(self, file: io.FileIO | io.BytesIO) -> None:
        super().__init__(file)
        self.num_bytes = os.fstat(file.fileno()).st_size if isinstance(file, io.FileIO) else len(file.getbuffer())
        if self.num_bytes > MAX_BYTES:
            self.close()
            raise UnreadableError(f"the file has {self.num_bytes} bytes; expected at most {MAX_BYTES}")
        self._bytes_left = 8 * self.num_bytes + (1 << 20)
        self._ends_at = time.thread_time() + MAX_SECONDS
        self._until_clock = 0

    def read(self, size: int | None = -1, /) -> bytes:
        if self._until_clock <= 0:  # not each time: to ask for the time takes longer than to read a byte
            self._until_clock = _CLOCK_BYTES
            if time.thread_time() > self._ends_at:
                raise UnreadableError(f"decoding takes more than {MAX_SECONDS:g} s of processor time")
        content = super().read(size)
        self._until_clock -= len(content) + 1
        self._bytes_left -= len(content)
        if self._bytes_left < 0:
            raise UnreadableError("its parts overlap: the decoder has read the file eight times")
        return content


def _check_size(opened: Image.Image, file: BinaryIO) -> None:
    """Raise if decoding would take too much memory or time."""
    pixels = opened.width * opened.height
    if pixels > MAX_PIXELS:
        raise UnreadableError(f"it has {opened.width}x{opened.height} pixels; expected at most {MAX_PIXELS} in all")
    if opened.format == "TIFF":
        lengths = (_numbers(opened, tag) for tag in _LENGTH_TAGS)
        if isinstance(file, _LimitedFile) and sum(map(sum, lengths)) > 4 * file.num_bytes:
            raise UnreadableError("its strips or tiles overlap")
    if opened.info.get("progressive") and pixels * _num_scans(file) > _MAX_SCANNED:
        raise UnreadableError(f"it has too many scans for {pixels} pixels")


def _num_scans(file: BinaryIO) -> int:
    """Return the number of scans of a JPEG: their marker cannot occur within compressed data."""
    place = file.tell()
    file.seek(0)
    count, last = 0, b""
    while block := file.read(1 << 20):
        count += (last + block).count(b"\xff\xda")
        last = block[-1:]
    file.seek(place)
    return count


class _Budget:
    """The pixels that all threads of this process may decode at one time, first come, first served."""

    def __init__(self, pixels: int) -> None:
        self._left = pixels
        self._turn, self._changed = threading.Lock(), threading.Condition()

    @contextmanager
    def reserved(self, pixels: int) -> Iterator[None]:
        """Wait until so many pixels are left, and hold them."""
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._left >= pixels)
            self._left -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._left += pixels
                self._changed.notify_all()


class _SharedBudget:
    """The pixels that several processes of one thread each may decode at one time.

    An image of at most an equal share is decoded beside others, a larger one alone.
    """

    def __init__(self, num_processes: int, descriptor: int) -> None:
        self._share, self._descriptor = MAX_PIXELS // num_processes, descriptor

    @contextmanager
    def reserved(self, pixels: int) -> Iterator[None]:
        """Wait until so many pixels may be decoded, and hold them."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_SH if pixels <= self._share else fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


_budget: _Budget | _SharedBudget = _Budget(MAX_PIXELS)


def share_pixels(num_processes: int, descriptor: int) -> None:
    """Share the bound on pixels with other processes.

    Args:
        descriptor: of a file that all of them lock; the locks are those of processes.
    """
    global _budget
    _budget = _SharedBudget(num_processes, descriptor)


# --- pixels --------------------------------------------------------------------------------------------------------


def _rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """Return the image in mode RGB: scaled to 8 bits, in sRGB, without transparency."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        colour, opacity = _eight_bits(image, notes), _key_opacity(image)
    elif image.mode in _ALPHA_MODES or (image.mode in _PLAIN_MODES and "transparency" in image.info):
        colour, opacity = _split_alpha(image)
    elif image.mode in _PLAIN_MODES:
        _check_signed(image)
        colour, opacity = image, None
    else:
        raise UnreadableError(_mode_reason(image))
    colour = _in_srgb(colour, image.info.get("icc_profile"), notes)
    if opacity is None or opacity.getextrema() == (255, 255):
        return colour
    notes.append(TRANSPARENT)
    return Image.composite(colour, Image.new("RGB", image.size, BACKGROUND), opacity)


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Return the colours, in mode L or RGB, and the opacity, in mode L."""
    if image.mode in ("La", "RGBa"):  # colours multiplied by the opacity
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode == "LA":
        return image.getchannel("L"), image.getchannel("A")
    rgba = image.convert("RGBA")
    grey = image.mode in ("1", "L")
    return rgba.getchannel("R") if grey else rgba.convert("RGB"), rgba.getchannel("A")


def _mode_reason(image: Image.Image) -> str:
    if image.mode == "F":
        return "its pixels are floating-point numbers, whose range no file declares; convert it to 8 or 16 bits"
    return f"its colour mode {image.mode} is not supported; convert it to RGB"


def _mode_name(opened: Image.Image, is_wide: bool) -> str:
    mode = "L" if opened.mode.startswith("I;16") or (opened.mode, opened.format) == ("I", "PPM") else opened.mode
    return f"{mode}, 16 bits" if is_wide and mode != "I" else mode


# --- more than 8 bits ----------------------------------------------------------------------------------------------


def _is_wide(opened: ImageFile.ImageFile) -> bool:
    """Return whether a sample has more than 8 bits; only before `load`, which forgets how the file is decoded."""
    if opened.mode.startswith("I"):
        return True
    arguments = [tile.args for tile in opened.tile[:1]]
    if opened.format == "PPM":
        return any(isinstance(each, tuple) and isinstance(each[-1], int) and each[-1] > 255 for each in arguments)
    return any(";16" in str(each) for each in arguments)


def _eight_bits(image: Image.Image, notes: list[str]) -> Image.Image:
    """Return grey samples of more than 8 bits, scaled from the declared range to 0 to 255, in mode L.

    Raises:
        UnreadableError: the file declares no range.
    """
    samples = np.asarray(image)
    darkest, brightest = int(samples.min()), int(samples.max())
    low, high = _declared_range(image, darkest, brightest)
    if brightest - low < (high - low) / 8:
        notes.append(DARK)
    scaled = np.empty(samples.shape, np.uint8)
    rows = max(1, (1 << 20) // image.width)  # few at a time: the wider integers take eight times the memory
    for top in range(0, image.height, rows):
        part = samples[top : top + rows].astype(np.int64).clip(low, high) - low
        scaled[top : top + rows] = (part * 255 + (high - low) // 2) // (high - low)
    if image.format == "TIFF" and image.mode.startswith("I;16") and _numbers(image, _PHOTOMETRIC_TAG) == [0]:
        scaled = 255 - scaled  # white is zero; Pillow inverts only narrower samples
    return Image.fromarray(scaled)


def _declared_range(image: Image.Image, darkest: int, brightest: int) -> tuple[int, int]:
    """Return the samples that are black and white; a declaration that the samples contradict does not count."""
    for low_tag, high_tag in _RANGE_TAGS if image.format == "TIFF" else ():
        low, high = (_numbers(image, low_tag) or [0])[0], (_numbers(image, high_tag) or [0])[0]
        if low < high and low <= darkest and brightest <= high:
            return low, high
    if image.mode.startswith("I;16"):
        bits = (_numbers(image, _BITS_TAG) or [16])[0] if image.format == "TIFF" else 16
        return 0, (1 << min(bits, 16)) - 1
    if image.format == "PPM":
        return 0, 65_535  # Pillow scales to it from the declared maximum
    raise UnreadableError(
        "its pixels are signed or 32-bit integers, and the file declares no range (MinSampleValue, MaxSampleValue); "
        "convert it to 8 or 16 bits"
    )


def _key_opacity(image: Image.Image) -> Image.Image | None:
    """Return the opacity of grey samples of 16 bits, of which a PNG may declare one transparent."""
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return None
    return Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8))


def _check_signed(image: Image.Image) -> None:
    """Raise for signed samples of 8 bits, which Pillow reads as unsigned ones."""
    if image.format == "TIFF" and 2 in _numbers(image, _SAMPLE_FORMAT_TAG):
        raise UnreadableError("its pixels are signed integers; convert it to unsigned 8 or 16 bits")


def _numbers(image: Image.Image, tag: int) -> list[int]:
    """Return the whole numbers of a TIFF tag; empty if the file has none."""
    tags: Any = getattr(image, "tag_v2", {})
    value = tags.get(tag, ())
    values = value if isinstance(value, tuple) else (value,)
    return [int(each) for each in values if isinstance(each, int | float) and each == each and abs(each) < 2**53]


# --- colour and orientation ----------------------------------------------------------------------------------------


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 if there is none or if the EXIF data is damaged."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except UnreadableError:
        raise
    except Exception:  # as for pixels, damaged bytes raise anything
        return 1
    return value if isinstance(value, int) else 1


def _in_srgb(image: Image.Image, profile: Any, notes: list[str]) -> Image.Image:
    """Return the image in mode RGB, converted from its colour profile if that is not sRGB itself."""
    if not profile:
        return image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy it
    if image.mode not in _PROFILE_SPACES:  # a palette
        image = image.convert("RGB")
    transform = _to_srgb(bytes(profile), image.mode) if len(profile) <= _MAX_PROFILE_BYTES else None
    if transform is None:
        notes.append(PROFILE_IGNORED)
    elif transform != "same":
        notes.append(CONVERTED)
        return transform.apply(image.convert("L") if image.mode == "1" else image)
    return image.convert("RGB")


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | Literal["same"] | None:
    """Return the conversion of a mode's colours to sRGB; None if the profile is damaged or of another mode."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _PROFILE_SPACES[mode]:
            return None
        if mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
            return "same"
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "L" if mode == "1" else mode, "RGB")
    except Exception:  # damaged profiles raise anything
        return None
