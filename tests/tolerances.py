"""Every tolerance of the suite, absolute unless said, each with its reason. No test writes a number of its own."""

TOLERANCES = {
    # fp32 features of order one through dozens of layers: sums in another order. Measured 1e-6 to 4e-6.
    "features": 1e-4,
    "features_normalised": 1e-5,
    # one block's output, of order ten at most. Measured below 2e-5.
    "tokens": 1e-4,
    # relative to the largest entry of the same parameter's gradient (or to 1e-4: the key bias's is zero by symmetry).
    "gradient_relative": 1e-4,
    # weights after a short training; where rounding carries torch's own float32 far, "drift" widens it.
    "trajectory": 1e-4,
    # times torch's own float32 leaves its float64 in the same training: both roundings are chance, and no two alike.
    "drift": 10.0,
    # rows of length one stored in float16 twice: half a unit in the last place, at most 2.4e-4 each.
    "stored_half": 1e-3,
    # pixels of boxes that are written with two decimals.
    "written_boxes": 1e-2,
    # losses of order one along a short training.
    "trajectory_loss": 1e-4,
    # the same of the contrastive loss at a logit scale of 100, which the softmax sharpens.
    "contrastive_gradient_relative": 1e-4,
    "contrastive_trajectory": 1e-4,
    "contrastive_trajectory_loss": 1e-4,
    # an optimiser's update given equal gradients: rounding only.
    "optimiser": 2e-6,
    # one product, or a weighted mean of equal numbers: rounding only. Measured below 4e-7.
    "rounding": 1e-6,
    # a learning rate below one, computed in float64 on both sides. Measured 5e-18.
    "schedule": 1e-15,
    # running statistics of batch norm after one step.
    "statistics": 1e-5,
    # closed-form float64 against float64, written out in another order.
    "closed_form": 1e-9,
    # float32 scores of order ten against a float64 reference.
    "scores": 1e-4,
    # probabilities of float32 logits up to 100, which are 8e-6 apart there; softmax hands that on. Measured 1.9e-6.
    "probabilities_at_100": 5e-6,
    # float32 inputs around 1000 are 6e-5 apart, which the weight stretches. Jittor's own LayerNorm errs by 10 there.
    "layer_norm": 1e-3,
    # one fused operator on numbers of order one to ten, and its gradients. Measured 2e-6.
    "kernel": 1e-5,
    # the same on values around 30, which are 2e-6 apart in float32 and are divided by a deviation of one.
    "kernel_offset": 1e-4,
    # bicubic weights in float64 against torch's float32.
    "resampling": 1e-5,
    # half precision with float32 accumulation: eight bits of mantissa less, relative to the largest feature.
    "half_relative": 2e-2,
    # one number rounded to the nearest bfloat16, relative to itself: 2^-8, and float32's own rounding.
    "half_rounding": 3.92e-3,
    # whole towers with bfloat16 products, against float32: rounding of each product adds up. Measured 1.2e-2.
    "half_tower_relative": 3e-2,
    # a number rounded to the nearest step of its row, in steps: half of one, and float32's own rounding.
    "half_a_step": 0.5001,
    # share of outputs that a number between two integers, rounded to the other one, moves.
    "int8_halfway": 0.1,
    # 1 - cosine to float32 of a tower of real size in 8 bits, random weights. Measured 6e-5.
    "int8_cosine": 1e-3,
    # 1 - cosine to float32 of toy towers in 8 bits: features are sums of 20 to 48 terms. Measured 1.7e-3.
    "int8_toy_cosine": 4e-3,
    # the same between one's operators and the plain formulas: attention is bfloat16 in one of them.
    "int8_on_off_cosine": 1e-3,
    # losses along a short training with bfloat16 products, against float32. Measured 1e-3.
    "half_training_relative": 1e-2,
    # log-probabilities and losses of order one.
    "loss": 1e-5,
    # the maximum of a likelihood, found by two methods that stop at different distances from it. Measured 5e-9.
    "sigmoid_fit": 1e-7,
    # what a process held at most beside the estimate: libraries keep scratch memory. Measured below 0.12.
    "memory_relative": 0.3,
    # precomputed features of the real model are float16; accuracies on them are exact counts.
    "recorded_features": 2e-3,
    # reliabilities, shares of one, by two ways of the same computation: batches, the formula, a file.
    "reliability_batches": 1e-5,
    "reliability": 1e-6,
    "reliability_written": 2e-6,
    # a low-rank update of order one merged into a weight.
    "merged_update": 1e-6,
    # pixels of boxes that a run finds again.
    "found_again": 1e-3,
}


def tolerance(name: str) -> float:
    return TOLERANCES[name]
