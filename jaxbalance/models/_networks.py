"""Reference networks: small, plain, and fast to train many times over."""

import itertools
from collections.abc import Callable, Sequence

import jax
from flax import nnx

from jaxbalance import _check
from jaxbalance._types import Array
from jaxbalance.models._layers import ShiftedConvolution, halve


class MLP(nnx.Module):
    """Fully connected ReLU network; inputs of any rank are flattened.

    Args:
      num_features: product of the input's dimensions without the batch.
      num_classes: K.
      hidden: widths of the hidden layers; empty is a linear classifier.
      head: the last layer, called as ``head(width, num_classes, rngs=rngs)``.
      rngs: Flax's random streams.

    Raises:
      ValueError: a size is not a positive integer.

    >>> MLP(4, 3, hidden=(8,), rngs=nnx.Rngs(0))(jax.numpy.ones((2, 2, 2))).shape
    (2, 3)
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        hidden: Sequence[int] = (128,),
        head: Callable[..., Callable[[Array], Array]] = nnx.Linear,
        rngs: nnx.Rngs,
    ):
        _check.positive_integer(num_features=num_features, num_classes=num_classes)
        widths = [num_features, *hidden]
        self.layers = nnx.List(nnx.Linear(i, o, rngs=rngs) for i, o in itertools.pairwise(widths))
        self.head = head(widths[-1], num_classes, rngs=rngs)

    def __call__(self, inputs: Array) -> Array:
        """``[B, ...] -> [B, K]``."""
        features = inputs.reshape(inputs.shape[0], -1)
        for layer in self.layers:
            features = jax.nn.relu(layer(features))
        return self.head(features)


class SmallCNN(nnx.Module):
    """Convolutions and pooling down to at most 8 x 8, one hidden layer, a head.

    For 28 x 28 inputs: 16 and 32 channels, 7 x 7 x 32 features, 64 hidden units, about 106 thousand
    parameters at ten classes.

    Args:
      image_shape: ``(height, width, channels)``.
      num_classes: K.
      width: channels of the first stage; every stage doubles them.
      hidden: width of the layer before the head.
      head: the last layer, called as ``head(hidden, num_classes, rngs=rngs)``.
      rngs: Flax's random streams.

    Raises:
      ValueError: ``image_shape`` has not three entries or the image is under 2 x 2.

    >>> SmallCNN((8, 8, 1), 3, rngs=nnx.Rngs(0))(jax.numpy.ones((2, 8, 8, 1))).shape
    (2, 3)
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        *,
        width: int = 16,
        hidden: int = 64,
        head: Callable[..., Callable[[Array], Array]] = nnx.Linear,
        rngs: nnx.Rngs,
    ):
        if len(image_shape) != 3 or min(image_shape[:2]) < 2:
            raise ValueError(
                f"image_shape: got {tuple(image_shape)}, wanted (height, width, channels), "
                "at least 2 x 2"
            )
        rows, columns, channels = image_shape
        convolutions: list[ShiftedConvolution] = []
        while not convolutions or (max(rows, columns) > 8 and min(rows, columns) > 1):
            convolutions.append(ShiftedConvolution(channels, width, rngs=rngs))
            rows, columns, channels, width = rows // 2, columns // 2, width, 2 * width
        self.convolutions = nnx.List(convolutions)
        self.dense = nnx.Linear(rows * columns * channels, hidden, rngs=rngs)
        self.head = head(hidden, num_classes, rngs=rngs)

    def __call__(self, inputs: Array) -> Array:
        """``[B, H, W, C] -> [B, K]``."""
        features = inputs
        for convolution in self.convolutions:
            features = halve(jax.nn.relu(convolution(features)))
        features = jax.nn.relu(self.dense(features.reshape(features.shape[0], -1)))
        return self.head(features)
