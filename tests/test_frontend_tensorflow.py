"""TensorFlow in: Keras models, .keras files and SavedModels, held against TensorFlow's own run."""
import numpy as np
import pytest

import ingot

tf = pytest.importorskip("tensorflow")
pytest.importorskip("tf2onnx")

pytestmark = [pytest.mark.tensorflow, pytest.mark.cpu, pytest.mark.filterwarnings("ignore")]
FAST = ingot.BuildOptions(tune=False)
IMAGES = np.random.default_rng(0).standard_normal((5, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def net():
    tf.random.set_seed(0)
    layers = tf.keras.layers
    made = tf.keras.Sequential([layers.Input((16, 16, 3), name="image"), layers.Conv2D(4, 3, activation="relu"),
                                layers.BatchNormalization(), layers.MaxPooling2D(), layers.DepthwiseConv2D(3),
                                layers.GlobalAveragePooling2D(), layers.Dropout(0.3),
                                layers.Dense(5, activation="softmax")])
    made(IMAGES, training=True)
    return made


def close(engine, net) -> None:
    assert engine.verdict["passed"] and str(engine.verdict["original"]).startswith("TensorFlow")
    (got,) = ingot.Session(engine).run(IMAGES).values()
    np.testing.assert_allclose(got, net(IMAGES, training=False).numpy(), rtol=1e-4, atol=1e-5)


def test_a_keras_model(net):
    close(ingot.build(net, options=FAST), net)


def test_a_keras_file(net, tmp_path):
    net.save(tmp_path / "net.keras")
    close(ingot.build(tmp_path / "net.keras", options=FAST), net)


def test_a_saved_model(net, tmp_path):
    net.export(str(tmp_path / "saved"), verbose=False)
    close(ingot.build(tmp_path / "saved", options=FAST), net)


def test_a_function_with_two_inputs_and_outputs_by_name(tmp_path):
    def call(x, y):
        return {"sum": x + y, "product": tf.matmul(x, y, transpose_b=True)}

    module = tf.Module()
    module.call = tf.function(call, input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x"),
                                                     tf.TensorSpec((None, 4), tf.float32, name="y")])
    tf.saved_model.save(module, str(tmp_path / "m"), signatures={"serving_default": module.call})
    engine = ingot.build(tmp_path / "m", options=FAST)
    x, y = (np.random.default_rng(i).standard_normal((3, 4)).astype(np.float32) for i in (1, 2))
    got = ingot.Session(engine).run({"x": x, "y": y})
    np.testing.assert_allclose(got["sum"], x + y, rtol=1e-6)
    np.testing.assert_allclose(got["product"], x @ y.T, rtol=1e-4, atol=1e-5)
