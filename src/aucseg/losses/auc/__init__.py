"""The engine: what computes the AUC loss, exactly and in linear time. A map for newcomers.

- **The formula** is in `pair_risk`: the loss from sums over the pixels. Begin there.
- **A surrogate** is added in `surrogates`, as one class (`CONTRIBUTING.md` has the recipe).
- **The speed** comes from the passes over the pixels: `torch_passes` (cut into `pieces` that fit the cache; what is
  seen of a piece is in `pixels`) and, on CUDA, `triton_passes` with their `triton_launches` and `triton_kernels` (what
  these see of a pixel is in `triton_features`, what they do with the sums in `triton_risk`).

From the logits to the loss::

    options, checks       what is computed, what users give
    objective             three routes: fused on a GPU, from sums, by sorting
    operators             the passes as operators of torch, and the choice of a backend
    torch_passes | triton_passes      two backends with one interface: counts, sums, gradient
    pair_risk             the loss from the sums
    by_sorting            the routes without sums: hinges at rest, partial AUC
    class_sums            what ranks and micro-batches exchange
    surrogates            every l(t), and the choice of its form
    separable, smooth     l(t) as a short sum of products; smooth ones by expansion
"""
