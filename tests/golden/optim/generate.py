"""Golden values of tests/optim: steps of torch.optim.AdamW and SGD, and transformers' schedules.

Made with torch 2.11.0 (CPU, default single-tensor form) and transformers 5.23.0:
    python tests/golden/optim/generate.py
adamw.txt: per case a line of options, then rows of fp32 bit patterns in hexadecimal:
`parameter`, then per step `gradient`, `parameter`, `exp_avg`, `exp_avg_sq`.
sgd.txt: the same with `parameter`, then per step `gradient`, `parameter`, `momentum_buffer`.
schedules.txt: per case `type total warmup`, then the factors of steps 0..total+1 as %.17g.
clip.txt: per case max_norm, the gradient before and after clip_grad_norm_ as bit patterns.
"""
import pathlib

import torch
import transformers

HERE = pathlib.Path(__file__).parent
NUM_ELEMENTS = 37
NUM_STEPS = 6


def row(name, tensor):
    words = tensor.detach().float().contiguous().view(torch.int32).tolist()
    return name + " " + " ".join(f"{word & 0xFFFFFFFF:08x}" for word in words)


def adamw_cases():
    #      lr    decay  beta1  beta2  eps    gradient scale
    yield 2e-4, 0.0, 0.9, 0.999, 1e-8, 1.0
    yield 1e-3, 0.1, 0.9, 0.95, 1e-6, 1e-3
    yield 5e-2, 0.01, 0.3, 0.99, 1e-8, 1e3
    yield 1e-5, 0.5, 0.0, 0.999, 1e-8, 1e-8


def write_adamw():
    lines = []
    for index, (lr, decay, beta1, beta2, eps, scale) in enumerate(adamw_cases()):
        generator = torch.Generator().manual_seed(100 + index)
        parameter = torch.nn.Parameter(torch.randn(NUM_ELEMENTS, generator=generator))
        optimizer = torch.optim.AdamW([parameter], lr=lr, betas=(beta1, beta2), eps=eps,
                                      weight_decay=decay)
        lines.append(f"case {lr!r} {decay!r} {beta1!r} {beta2!r} {eps!r} {NUM_STEPS}")
        lines.append(row("parameter", parameter))
        for step in range(NUM_STEPS):
            gradient = torch.randn(NUM_ELEMENTS, generator=generator) * scale
            gradient[step] = 0.0
            parameter.grad = gradient.clone()
            optimizer.step()
            state = optimizer.state[parameter]
            lines += [row("gradient", gradient), row("parameter", parameter),
                      row("exp_avg", state["exp_avg"]), row("exp_avg_sq", state["exp_avg_sq"])]
    (HERE / "adamw.txt").write_text("\n".join(lines) + "\n")


def sgd_cases():
    #      lr    decay  momentum  dampening  nesterov
    yield 1e-2, 0.0, 0.0, 0.0, False
    yield 1e-1, 0.1, 0.9, 0.0, False
    yield 5e-2, 0.01, 0.5, 0.25, False
    yield 1e-3, 0.5, 0.95, 0.0, True


def write_sgd():
    lines = []
    for index, (lr, decay, momentum, dampening, nesterov) in enumerate(sgd_cases()):
        generator = torch.Generator().manual_seed(200 + index)
        parameter = torch.nn.Parameter(torch.randn(NUM_ELEMENTS, generator=generator))
        optimizer = torch.optim.SGD([parameter], lr=lr, momentum=momentum, dampening=dampening,
                                    nesterov=nesterov, weight_decay=decay)
        lines.append(f"case {lr!r} {decay!r} {momentum!r} {dampening!r} {int(nesterov)} {NUM_STEPS}")
        lines.append(row("parameter", parameter))
        for _ in range(NUM_STEPS):
            gradient = torch.randn(NUM_ELEMENTS, generator=generator)
            parameter.grad = gradient.clone()
            optimizer.step()
            buffer = optimizer.state[parameter].get("momentum_buffer")
            lines += [row("gradient", gradient), row("parameter", parameter),
                      row("momentum_buffer", torch.zeros(NUM_ELEMENTS) if buffer is None else buffer)]
    (HERE / "sgd.txt").write_text("\n".join(lines) + "\n")


def write_schedules():
    lines = []
    for name in ("constant", "constant_with_warmup", "linear", "cosine"):
        for total, warmup in ((10, 0), (10, 3), (7, 7), (1, 0), (5, 9), (57, 2)):
            if name == "constant" and warmup > 0:
                continue
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
            scheduler = transformers.get_scheduler(name, optimizer, num_warmup_steps=warmup,
                                                   num_training_steps=total)
            factors = [scheduler.lr_lambdas[0](step) for step in range(total + 2)]
            lines.append(f"{name} {total} {warmup} " + " ".join(f"{f:.17g}" for f in factors))
    (HERE / "schedules.txt").write_text("\n".join(lines) + "\n")


def write_clip():
    lines = []
    for max_norm, values in ((1.0, [3.0, 4.0]), (1.0, [0.3, 0.4]), (0.5, [1e-4, 2e-3]),
                             (2.5, [1e3, -7e4]), (1.0, [1.0, 0.0])):
        parameter = torch.nn.Parameter(torch.zeros(2))
        parameter.grad = torch.tensor(values)
        before = parameter.grad.clone()
        norm = torch.nn.utils.clip_grad_norm_([parameter], max_norm)
        lines.append(f"{max_norm!r} " + row("gradient", before) + " " + row("clipped", parameter.grad))
    (HERE / "clip.txt").write_text("\n".join(lines) + "\n")


write_adamw()
write_sgd()
write_schedules()
write_clip()
