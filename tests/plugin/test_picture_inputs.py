"""Pictures in every form reach ``mlx_vlm.generate`` and its siblings, and data sets."""

import io
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from mlx_vlm import apply_chat_template, batch_generate, generate, load, stream_generate, utils
from mlx_vlm.models.moxin.image_processing_moxin import MoxinImageProcessor
from mlx_vlm.models.moxin.picture_sources import PictureError
from mlx_vlm.trainer.vlm.sft import dataset
from mlx_vlm.utils import process_image
from PIL import Image

from mlx_vlm_moxin import generate as library_generate
from mlx_vlm_moxin.plugin.in_place import change_argument
from mlx_vlm_moxin.plugin.picture_inputs import resized

TINY = Path(__file__).parents[1] / "moxin_tiny"
DEMO = TINY / "demo.png"
DATA = DEMO.read_bytes()
PIXELS = np.asarray(Image.open(DEMO).convert("RGB"))
QUESTION = "What colour is the circle?"
ANSWER = "red"


@pytest.fixture(scope="module")
def tiny():
    return load(str(TINY / "checkpoint"))


@pytest.fixture(scope="module")
def prompt(tiny):
    model, processor = tiny
    return apply_chat_template(processor, model.config, QUESTION, num_images=1)


FORMS = {
    "str": str(DEMO),
    "Path": DEMO,
    "PIL": Image.open(DEMO),
    "uint8": PIXELS,
    "CHW": PIXELS.transpose(2, 0, 1),
    "float": PIXELS / 255,
    "RGBA": np.dstack([PIXELS, PIXELS[..., 0]]),
    "mx.array": mx.array(PIXELS),
    "bytes": DATA,
    "BytesIO": io.BytesIO(DATA),
    "bytes of a data set": {"bytes": DATA, "path": None},
    "path of a data set": {"bytes": None, "path": str(DEMO)},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_resized_by_mlx_vlms_function(form):
    picture = utils.process_image(FORMS[form], (32, 32), MoxinImageProcessor(28))
    assert max(picture.size) == 32


@pytest.mark.parametrize(
    "listed",
    [pytest.param(False, id="alone", marks=pytest.mark.slow), pytest.param(True, id="in a list")],
)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_picture_is_answered_by_every_function(tiny, prompt, form, listed, capsys):
    picture = [FORMS[form]] if listed else FORMS[form]
    options = {"max_tokens": 4}
    assert generate(*tiny, prompt, picture, **options).text == ANSWER
    assert generate(*tiny, prompt, picture, verbose=True, **options).text == ANSWER
    tokens = stream_generate(*tiny, prompt, image=picture, **options)
    assert "".join(token.text for token in tokens).strip() == ANSWER
    assert batch_generate(*tiny, picture, prompts=[prompt], **options).texts == [ANSWER]
    tokens = library_generate(*tiny, QUESTION, FORMS[form], **options)
    assert tiny[1].decode([*tokens]).strip() == ANSWER


def test_pictures_of_a_batch_may_have_different_forms(tiny, prompt):
    pictures = [*FORMS.values()]
    texts = batch_generate(*tiny, pictures, prompts=[prompt] * len(pictures), max_tokens=4).texts
    assert texts == [ANSWER] * len(pictures)


@pytest.mark.parametrize("function", [generate, batch_generate, stream_generate])
@pytest.mark.parametrize(
    ("picture", "part"), [(7, "int"), (io.StringIO("a"), "StringIO"), ([object()], "object")]
)
def test_what_cannot_be_read_is_named_by_its_type(tiny, prompt, function, picture, part):
    name = "images" if function is batch_generate else "image"
    prompts = {"prompts": [prompt]} if function is batch_generate else {"prompt": prompt}
    with pytest.raises(ValueError, match=part):
        list(function(*tiny, **prompts, **{name: picture}))


def test_without_a_picture_nothing_is_read(tiny):
    prompt = apply_chat_template(tiny[1], tiny[0].config, QUESTION, num_images=0)
    one = generate(*tiny, prompt, max_tokens=4).text
    assert generate(*tiny, prompt, None, max_tokens=4).text == one
    assert batch_generate(*tiny, prompts=[prompt], max_tokens=4).texts == [one]


def test_resize_shape_keeps_the_proportions_and_within_the_limits():
    picture = Image.new("RGB", (40, 20))
    assert resized(picture, None) is picture
    assert resized(picture, (10, 10)).size == (10, 5)
    for shape in ((10**6, 10**6), (1, 1)):
        with pytest.raises(PictureError, match=f"resize_shape {shape[0]} x {shape[1]} makes"):
            resized(picture, shape)


def test_other_models_pictures_are_left_to_mlx_vlm():
    assert process_image(PIXELS, None, object()) is PIXELS


def test_16_bit_grey_of_a_training_set_keeps_its_shades():
    grey = np.arange(0, 256, dtype=np.uint16).reshape(16, 16) * 257
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    row = {"bytes": file.getvalue(), "path": None}
    picture = dataset._resolve_media(row, None, image=True)
    np.testing.assert_array_equal(np.asarray(picture)[..., 0], grey >> 8)
    assert dataset._resolve_media("https://x/y.png", None, image=True) == "https://x/y.png"


def test_a_function_bound_beforehand_sees_the_changed_argument():
    def describe(processor, image=None, *, more=1):
        return (image, more)

    bound = describe
    assert change_argument(describe, "image", lambda image: [image], SimpleNamespace) is describe
    ours = SimpleNamespace()
    assert bound(ours, 1) == ([1], 1)
    assert bound(image=1, processor=ours, more=2) == ([1], 2)
    assert bound(ours) == (None, 1)
    assert bound(object(), 1) == (1, 1)
    with pytest.raises(LookupError, match="no parameter picture"):
        change_argument(lambda processor: None, "picture", list, object)
