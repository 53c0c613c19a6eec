"""Locks: which parameters stay, counted from the top as open_clip counts."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest

from jclip.errors import ConfigError
from jclip.model.parameter_groups import Lock, image_groups, text_groups, trained_patterns
from tests.toys import TOY_BERT, TOY_RESNET, TOY_VIT, shapes_of

CONFIGS = {"vit": TOY_VIT, "resnet": TOY_RESNET, "bert": TOY_BERT}


def trained(config, lock):
    patterns = trained_patterns(config, lock)
    return {k for k in shapes_of(config) if any(fnmatchcase(k, p) for p in patterns)}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_is_in_one_group(name):
    config = CONFIGS[name]
    groups = [*image_groups(config), *text_groups(config), ("logit_scale",)]
    for key in shapes_of(config):
        assert sum(any(fnmatchcase(key, p) for p in group) for group in groups) == 1, key
    assert trained(config, Lock()) == set(shapes_of(config))


def test_locked_towers():
    keys = set(shapes_of(TOY_VIT))
    text = {k for k in keys if not k.startswith("visual.")} - {"logit_scale"}
    assert trained(TOY_VIT, Lock(image=True)) == text | {"logit_scale"}
    assert trained(TOY_VIT, Lock(image=True, text=True)) == {"logit_scale"}
    assert trained(TOY_VIT, Lock(text=True)) == keys - text
    one = trained(TOY_VIT, Lock(image=True, image_groups=1, text=True))
    assert one == {"visual.proj", "logit_scale"}
    two = trained(TOY_VIT, Lock(image=True, image_groups=2, text=True, text_groups=2))
    assert {"visual.ln_post.weight", "visual.transformer.resblocks.1.ln_1.bias", "ln_final.bias"} <= two
    assert not {k for k in two if "resblocks.0" in k} and "transformer.resblocks.2.mlp.c_fc.weight" in two
    pool = trained(TOY_RESNET, Lock(image=True, image_groups=2, text=True)) - {"logit_scale"}
    assert pool == {k for k in shapes_of(TOY_RESNET) if k.startswith(("visual.attnpool.", "visual.layer4."))}


def test_the_last_group_of_a_bert_is_its_projection():
    two = trained(TOY_BERT, Lock(image=True, text=True, text_groups=2)) - {"logit_scale"}
    assert "text.text_projection" in two and len({k.split(".")[3] for k in two if "resblocks" in k}) == 1
    assert trained(TOY_BERT, Lock(image=True, text=True, text_groups=1)) == {"text.text_projection", "logit_scale"}


def test_locks_that_mean_nothing_are_refused():
    with pytest.raises(ConfigError, match="text_groups need a locked tower: set lock.image or lock.text"):
        Lock(image_groups=1)
    with pytest.raises(ConfigError, match="must be at least 0"):
        Lock(image=True, image_groups=-1)
    with pytest.raises(ConfigError, match="lock.text_groups must be at most 5, the groups of the text tower, got 9"):
        trained_patterns(TOY_VIT, Lock(text=True, text_groups=9))
    assert Lock(image=True).freezes_image and not Lock(image=True, image_groups=1).freezes_image
    assert Lock(text=True).freezes_text and not Lock().freezes_text
