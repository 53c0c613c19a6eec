"""What `bench/multi_label_table.py` measures: photo sets, runs and how rows of its table are made of them. Data, no code.

τ and the rate of each winner were chosen on the validation scenes of `scenes` with seed 1.
"""

from __future__ import annotations

MODEL = "shapes-tiny-rn"
SEEDS = (1, 2, 3)
SETS = {
    "scenes": "styles shown in training, a thing in each quarter",
    "unseen_scenes": "styles never shown",
    "free_scenes": "styles shown, things anywhere",
}
CHOSEN_ON = {"scenes": "scenes", "unseen_scenes": "scenes", "free_scenes": "free_scenes"}  # whose val photos choose
EPOCHS = "optim.epochs=4"  # half of the config's: validation mAP moves by less than 0.3 after it
PLAIN = ("winner=none", "tau_text=20", "tau_image=20", "optim.lr=1e-3")
TEACHER = ("optim.average=0.995", "teacher_global=1", "teacher_local=10000", "keep=student")
SIZE = 96  # pixels of a photo that is enlarged: 3 x 3 cells, which overlap quarters
RUNS = {  # text_as_image: settings on top of configs/text_as_image/shapes.yaml, which has winner=seed and τ 10
    "plain": PLAIN,
    "evidence": (*PLAIN, "evidence=true"),
    "winner": (),
    "pp_norm": ("winner=pp_norm",),
    "pp_plus": ("winner=pp_plus", "tau_text=20", "tau_image=20", "optim.lr=1e-3"),
    "teacher": (*PLAIN, *TEACHER),
    "cooccurrence": (*PLAIN, "cooccurrence=true"),
    "winner+evidence": ("evidence=true",),
    "winner+teacher": TEACHER,
    "winner+cooccurrence": ("cooccurrence=true",),
    "winner, larger": (f"preprocess.size={SIZE}",),
}
PHOTOS_KNOWN = {  # dual_prompt, on 800 labelled photos: settings on top of configs/dual_prompt/shapes.yaml
    "DualCoOp, its own loss": (
        "kind=dualcoop", "loss=pair", "scale=20", "learn=[scale,sharpness]", "loss_weight=0.001", "optim.lr=1e-3",
        "optim.epochs=20",
    ),
    "DualCoOp, ranking loss": ("kind=dualcoop",),
    "DualCoOp++, its own loss": (
        "loss=pair", "scale=20", "learn=[scale,sharpness]", "loss_weight=0.001", "optim.lr=1e-3", "optim.epochs=20",
    ),
    "DualCoOp++, ranking loss": (),
}  # fmt: skip
MODULATION, BANK = 0.5, 10  # at test alone: nothing is trained for them
WITHOUT_TRAINING = {  # model, method, short side in pixels, windows
    "whole photo": (MODEL, "whole", None, ()),
    "dense": (MODEL, "dense", None, ()),
    "places": (MODEL, "places", None, ()),
    f"dense, {SIZE} pixels": (MODEL, "dense", SIZE, ()),
    f"places, {SIZE} pixels": (MODEL, "places", SIZE, ()),
    "windows of the whole photo's feature": (MODEL, "whole", None, (2,)),
    "TagCLIP's method": ("shapes-tiny-vit", "tagclip", None, ()),
}
IN_WINDOWS = ("plain", "winner", "winner+evidence")  # runs that score windows
TOGETHER = (*IN_WINDOWS, "winner, larger")  # of the ensemble
FORMS = ("sim_var", "max")  # of fusion, that validation photos choose from
PUBLISHED = "sim_var"  # with κ 1.5
WHOLE_WEIGHTS = (0.0, 0.1, 1.0)  # of the whole photo's global scores beside its local ones
KAPPAS = (0.0, 0.5, 1.0, 1.5, 3.0)  # of the windows' global scores
LOCAL_KAPPAS = (0.0, 0.5, 1.5)  # of their local ones
AIMS = (  # row, set, least mAP
    ("winner", "scenes", 92.0),
    ("windows and ensemble", "scenes", 96.0),
    ("windows and ensemble", "free_scenes", 85.0),
)
