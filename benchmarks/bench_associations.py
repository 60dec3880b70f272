"""What association matrices cost, by our route and by the plain loop a textbook would write.

    python -m benchmarks.bench_associations            # about 6 minutes on one core
    python -m benchmarks.bench_associations --quick    # about 1 minute: fewer images, and loops over fewer of them
    python -m benchmarks.bench_associations --device cuda

Prints, for the default MNIST network and for Cifar10Fast (both untrained: the cost does not depend on it), seconds for
each method, their ratio to the loop, peak memory, and our time in forward passes over the same images; then how the
error of sampled input Jacobians falls with the number of directions. Seconds are process CPU seconds on one thread, or
wall seconds on a GPU. Loops that would take hours are timed on a part, and scaled by passes and images: the loop works
on whole batches too, without the matrix products that follow its derivatives, so that the ratios are on the low side.
"""

import argparse
import platform
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from associations import BASE_METHODS, JAC_DIRECTIONS, associations
from models.cifar10 import Cifar10Fast
from models.mnist import MnistSupervised
from numerics.derivatives import by_unit
from numerics.running_sums import gram
from numerics.settings import careful_arithmetic, frozen
from study.datasets import DATASETS, Split, load

# Measuring -----------------------------------------------------------------------------------------------------------


def seconds(function, device):
    """Process CPU seconds (wall seconds on a GPU) that one call takes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = clock()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def peak_memory(function, device):
    """MB that one call takes at its peak, above what was in use before; and the peak of the whole process."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        peak = torch.cuda.max_memory_allocated(device)
        return (peak - before) / 2**20, peak / 2**20
    if not Path("/proc/self/clear_refs").exists():  # Linux only
        return float("nan"), float("nan")
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    before = resident("VmRSS")
    function()
    return resident("VmHWM") - before, resident("VmHWM")


def resident(field):
    """MB, a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def test_images(name, n, device):
    """The first n test images where the data is on disk, otherwise noise with a black frame; and which of both."""
    if Path("data", name).is_dir():
        _, _, images, labels = load(name)
        kind = f"real {name} test images"
    else:
        generator = torch.Generator().manual_seed(0)
        c, h, w = DATASETS[name].shape
        images = F.pad(torch.randint(256, (n, c, h - 8, w - 8), generator=generator, dtype=torch.uint8), (4, 4, 4, 4))
        labels = torch.randint(10, (n,), generator=generator)
        kind = "noise with a black frame"
    return Split(images[:n].to(device), labels[:n].to(device), torch.arange(min(n, len(images)), device=device)), kind


def forward_passes(model, batches):
    with torch.no_grad(), careful_arithmetic():
        for x, _ in batches:
            model(x)


# The plain loops -----------------------------------------------------------------------------------------------------


def loop_seconds(model, method, batch, n_images, locations, device):
    """Seconds that the plain loop takes for n_images, from one batch and the given number of (unit, location) passes.

    The loop works on whole batches, one layer at a time: for each unit i and location s a backward pass to the input
    (`forward_jac`) or a second one to the layer (`backward_hess`), for each logit one to the layer (`backward_jac`).

    Returns: seconds; and in words what was timed.
    """
    x, y = batch
    total, timed, passes = 0.0, 0, 0
    with frozen(model), careful_arithmetic():
        for layer, h in enumerate(model(x)[0]):
            units = [(i, s) for i in range(h.shape[1]) for s in range(by_unit(h).shape[1])]
            of_layer = {"forward_cov": 1, "backward_jac": 10}.get(method, len(units))
            some = units[:: max(1, len(units) // locations)] if of_layer == len(units) else range(of_layer)
            spent = seconds(lambda layer=layer, some=some: LOOPS[method](model, x, y, layer, some), device)
            total += spent * of_layer / len(some)
            timed, passes = timed + len(some), passes + of_layer
    return total * n_images / len(x), f"{timed:,} of {passes:,} passes, {len(x)} of {n_images:,} images"


def loop_cov(model, x, _y, layer, _some):
    h = by_unit(model(x)[0][layer]).double()
    for s in range(h.shape[1]):
        torch.cov(h[:, s].T, correction=0)


def loop_forward_jac(model, x, _y, layer, some):
    x = x.detach().requires_grad_()
    rows = by_unit(model(x)[0][layer])
    for i, s in some:
        torch.autograd.grad(rows[:, s, i].sum(), x, retain_graph=True)


def loop_backward_jac(model, x, _y, layer, some):
    hidden, logits = model(x.detach().requires_grad_())
    for k in some:
        gram(by_unit(torch.autograd.grad(logits[:, k].sum(), hidden[layer], retain_graph=True)[0]))


def loop_backward_hess(model, x, y, layer, some):
    hidden, logits = model(x.detach().requires_grad_())
    loss = F.cross_entropy(logits, y, reduction="sum")
    gradient = torch.autograd.grad(loss, hidden[layer], create_graph=True)[0]
    rows = by_unit(gradient)
    for i, s in some:
        torch.autograd.grad(rows[:, s, i].sum(), hidden[layer], retain_graph=True)


LOOPS = dict(zip(BASE_METHODS, (loop_cov, loop_forward_jac, loop_backward_jac, loop_backward_hess), strict=True))


# The tables ----------------------------------------------------------------------------------------------------------


def compare(title, model, split, batch_size, passes, n_stated, **options):
    """One table: our seconds and the loop's, for n_stated images, measured on those of the split."""
    device = split.images.device
    model = model.to(device).eval()
    scale = n_stated / len(split)

    def ours(methods):
        return lambda: associations(model, split.batches(batch_size), methods=methods, **options)

    extra, process = peak_memory(ours(BASE_METHODS), device)
    forward_passes(model, split.batches(batch_size))
    floor = scale * seconds(lambda: forward_passes(model, split.batches(batch_size)), device)
    print(
        f"\n{title}\nbatches of {batch_size}; a forward pass over {n_stated:,} images takes {floor:.3g} s"
        + (f" (measured on {len(split):,}, × {scale:g})" if scale != 1 else "")
    )
    print(f"{'method':<22}{'ours, s':>10}{'forward passes':>16}{'loop, s':>12}{'ratio':>10}   loop timed on")
    batch = next(split.batches(batch_size))
    loops = 0.0
    for method in BASE_METHODS:
        spent = scale * seconds(ours([method]), device)
        loop, what = loop_seconds(model, method, batch, n_stated, passes, device)
        loops += loop
        print(f"{method:<22}{spent:>10.3g}{spent / floor:>16.1f}{loop:>12.3g}{loop / spent:>10,.0f}   {what}")
    everything = scale * seconds(ours(BASE_METHODS), device)
    print(
        f"{'all, each with _norm':<22}{everything:>10.3g}{everything / floor:>16.1f}{loops:>12.3g}"
        f"{loops / everything:>10,.0f}"
    )
    print(f"peak memory {extra:,.0f} MB above what was in use, {process:,.0f} MB for the whole process")
    return everything / floor


def error_curve(model, split, batch_size, directions):
    """Relative standard errors of `forward_jac`, |stderr| / |matrix| (Frobenius), for numbers of directions."""
    device, n = split.images.device, len(split)
    print(
        f"\nCifar10Fast, forward_jac from random directions: relative standard error on {n:,} images, and in brackets"
        f" what it is on 10,000, by √({n:,}/10,000)"
    )
    print(f"{'directions':>10}{'s/image':>10}" + "".join(f"{f'h{layer}':>17}" for layer in range(6)))
    for count in directions:
        found = []
        spent = seconds(
            lambda count=count, found=found: found.append(
                associations(model, split.batches(batch_size), methods=["forward_jac"], jac_directions=count)
            ),
            device,
        )
        errors = [
            float(error.norm() / matrix.norm())
            for error, matrix in zip(found[0].stderr["forward_jac"], found[0].assoc["forward_jac"], strict=True)
        ]
        cells = (f"{error:>9.1%} ({error * (n / 10_000) ** 0.5:.2%})" for error in errors)
        print(f"{count:>10}{spent / n:>10.3f}" + "".join(f"{cell:>17}" for cell in cells), flush=True)


def main(quick=False, device="cpu"):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{processor()}, one thread"
    print(f"torch {torch.__version__}, {name}; memory of the process with its libraries: {resident_now()}")

    mnist, kind = test_images("mnist", 10_000, device)
    compare(f"MnistSupervised (64, 64), {kind}", MnistSupervised(), mnist, 200, 64, len(mnist))
    compare(
        "The same with the combined matrix over both layers",
        MnistSupervised(),
        mnist,
        200,
        64,
        len(mnist),
        combined=True,
    )

    gpu = device.type == "cuda"
    n, batch_size = (10_000, 200) if gpu else (32 if quick else 128, 16)
    images, kind = test_images("cifar10", n, device)
    model = Cifar10Fast()
    multiple = compare(
        f"Cifar10Fast (64, 128, 256, 256), {kind}", model, images, batch_size, 4 if quick else 16, 10_000
    )
    print(
        f"stated floor 1 + 2·{JAC_DIRECTIONS} + 2·10 = {21 + 2 * JAC_DIRECTIONS} forward passes: "
        f"{multiple / (21 + 2 * JAC_DIRECTIONS):.2f} of it"
    )
    error_curve(
        model,
        test_images("cifar10", 10_000 if gpu else (32 if quick else 64), device)[0],
        batch_size,
        (2, 4, 8) if quick else (2, 4, 8, 16, 32, 64),
    )


def processor():
    """The processor's name as the system gives it."""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    return platform.processor() or platform.machine()


def resident_now():
    return f"{resident('VmRSS'):.0f} MB" if Path("/proc/self/status").exists() else "unknown"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer images, and loops over fewer of them")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    main(**vars(parser.parse_args()))
