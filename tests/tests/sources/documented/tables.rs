//! What is different where a test runs a document's commands.

/// Where a command that is not run here is run, or why nowhere.
pub(super) enum Elsewhere {
    /// A test runs its like: a file, and a function in it.
    Like(&'static str, &'static str),
    /// The same, and here its place is taken by generated data of the same name.
    Fetched(&'static str, &'static str),
    /// It names tests by itself, which must be there.
    Test,
    /// No test does, and why.
    Not(&'static str),
}

use Elsewhere::{Fetched, Like, Not, Test};

/// Commands that cannot be run in a test: their first words.
pub(super) const ELSEWHERE: &[(&str, Elsewhere)] = &[
    // What builds, tests and packs.
    ("make test", Not("it is what runs this test")),
    ("make build", Like("Makefile", "test-dist: build")),
    ("make libtorch", Like("Makefile", "test-build: libtorch")),
    ("make FLEX=1 train", Like("scripts/test-flex.sh", "local configs/alexnet-synthetic.toml --workers 2 --devices flex")),
    ("make dist", Like("scripts/test-dist.sh", "scripts/dist.sh --package")),
    ("make FLEX=1 dist", Like("scripts/test-flex.sh", "# As scripts/dist.sh makes it.")),
    ("make test-dist", Like(".ci/run", "step scripts/test-dist.sh")),
    ("make test-flex", Like(".ci/run", "make test-flex")),
    ("make chaos", Like("tests/tests/cluster/chaos.rs", "fn one_thing_after_the_other")),
    ("chaos", Like("tests/tests/cluster/chaos.rs", "fn one_thing_after_the_other")),
    ("make fuzz", Not("it needs a nightly compiler and cargo-fuzz, and takes minutes")),
    ("cargo build --release -p own-model -p coordinator", Like("Makefile", "cargo build --release --workspace")),
    ("cargo test", Test),
    // What takes the internet.
    ("worker data get", Fetched("worker/src/analysis/fetch/mod.rs", "fn a_file_is_known_by_its_uncompressed_content")),
    // What takes other machines, or what runs there.
    ("coordinator ssh", Like("tests/tests/ssh.rs", "fn workers_on_other_hosts_live_and_end_with_the_run")),
    ("ssh -L", Not("all of it is ssh's own")),
    ("sbatch", Like("tests/tests/slurm.rs", "fn a_job_is_drained_requeued_and_cancelled_without_loss")),
    ("kubectl", Like("tests/tests/kubernetes.rs", "fn the_resources_are_valid_and_fit_together")),
    ("worker join 10.0.0.7:7474", Like("tests/tests/networks.rs", "fn a_worker_that_came_by_loopback_gets_an_address_that_others_reach")),
    ("worker join ...", Like("tests/tests/cluster/faults.rs", "fn a_worker_whose_copy_of_the_data_breaks_leaves_and_the_others_go_on")),
    ("own-model join ...", Like("tests/tests/own_model.rs", "fn workers_join_a_coordinator_that_has_none_of_its_code")),
    ("man ringleader-worker-join", Like("scripts/test-dist.sh", "man1/ringleader-worker-join.1.gz")),
    // What takes a run at a moment that only a test of its own can choose.
    ("worker leave", Like("tests/tests/cluster/signals.rs", "fn leave_asks_the_worker_that_it_names")),
    (
        "coordinator serve CONFIG --run-dir DIR --resume",
        Like("tests/tests/cluster/coordinator.rs", "fn the_ring_trains_on_without_its_coordinator"),
    ),
    (
        "coordinator token new|list|revoke RUN",
        Like("tests/tests/peers/locked_down.rs", "fn a_revoked_token_sends_its_workers_away_and_lets_nobody_in"),
    ),
    // Other programs.
    ("curl -s -H 'Accept: text/plain'", Like("tests/tests/page.rs", "fn prometheus_reads_the_metrics")),
    (
        "tensorboard --logdir runs",
        Like("tests/tests/python/records.rs", "fn tensorboard_shows_the_pictures_of_one_process_and_of_a_cluster"),
    ),
    ("aws configure", Not("all of it is the AWS command line's own")),
    ("mlflow server", Like("tests/tests/python/records.rs", "fn an_mlflow_server_has_the_record_of_a_run_that_went_on")),
];

/// A part of a command that is another one here.
pub(super) struct Changed {
    /// The document, or all where this is empty.
    pub document: &'static str,
    pub part: &'static str,
    pub is: &'static str,
    pub why: &'static str,
}

const fn changed(document: &'static str, part: &'static str, is: &'static str, why: &'static str) -> Changed {
    Changed { document, part, is, why }
}

/// In this order.
pub(super) const CHANGED: &[Changed] = &[
    // Names that stand for something of the reader's.
    changed("docs/own-model.md", "export RUN", "export runs/resnet-20", "a run of the model"),
    changed("", "RUN...", "runs/example", "a run"),
    changed("", "RUN", "runs/example", "a run"),
    changed("", "PICTURE...", "PICTURE.jpg", "a picture"),
    changed("", "data show PATH", "data show pictures", "a path of data"),
    changed("", "bench data PATH", "bench data pictures", "a path of data"),
    changed(
        "",
        "local CONFIG --worker-binary",
        "local examples/own-model/resnet.toml --workers 2 --worker-binary",
        "a config of the model",
    ),
    changed("", "CONFIG", "configs/mlp-xor.toml", "a config that takes a second"),
    // Length.
    changed("", "train configs/softmax.toml", "train configs/softmax.toml --set train.epochs=2", "length"),
    changed("", "train configs/mlp.toml", "train configs/mlp.toml --set train.epochs=2", "length"),
    changed("", "train configs/lenet.toml", "train configs/lenet.toml --set train.epochs=2", "length"),
    changed("", "train configs/lenet-relu.toml", "train configs/lenet-relu.toml --set train.epochs=2", "length"),
    changed("", "local configs/lenet.toml", "local configs/lenet.toml --set train.epochs=2", "length"),
    changed("", "make train", "make -o data train", "the data is there; the binaries are built"),
    changed(
        "",
        "local pictures.toml",
        "local pictures.toml --set model.width=0.1 --set train.epochs=2 --set train.warmup_epochs=1",
        "length",
    ),
    changed(
        "",
        "configs/alexnet-imagenette.toml",
        "configs/alexnet-imagenette.toml --set model.width=0.05 --set train.max_steps=3 --set train.global_batch=8",
        "length",
    ),
    changed(
        "",
        "train configs/alexnet.toml",
        "train configs/alexnet.toml --set model.width=0.05 --set train.max_steps=2 --set train.shards=8 --set train.global_batch=16",
        "length",
    ),
    changed("", "worker bench step", "worker bench step --config configs/alexnet-synthetic.toml --batch 2 --steps 2", "length"),
    changed("", "--checkpoint 1480", "--checkpoint 2", "the run has two steps here"),
    changed(
        "docs/failure.md",
        "benches/alexnet-224.toml",
        "benches/alexnet-224.toml --set model.width=0.03 --set data.classes=10 --set data.train=64 --set data.val=10 --set data.image_size=64 \
         --set train.max_steps=2",
        "length",
    ),
    changed(
        "",
        "examples/own-model/resnet.toml",
        "examples/own-model/resnet.toml --set model.own.blocks=1 --set model.own.width=4 --set train.max_steps=2 --set train.global_batch=16 \
         --set 'data={kind=\"synthetic\",classes=5,train=32,val=10,image_size=16}'",
        "length, and no data to fetch",
    ),
    // What tests beside this one may have.
    changed("", "coordinator serve ", "coordinator serve --listen 127.0.0.1:0 ", "another process may have the port"),
    changed("", "coordinator doctor", "coordinator doctor --listen 127.0.0.1:0", "another process may have the port"),
    // What takes the internet.
    changed("", " && aws s3 cp --recursive packed s3://bucket/packed", "", "a bucket; tests/tests/python/stores.rs reads packs from one"),
];

/// Files that commands make, as their document says.
pub(super) const MADE: &[(&str, &str, &[&str])] = &[
    ("README.md", "make train", &["runs/alexnet-fashion/summary.json"]),
    ("README.md", "coordinator init pictures", &["pictures.toml"]),
    ("README.md", "coordinator local pictures.toml --workers 2", &["runs/pictures/summary.json", "runs/pictures/checkpoints"]),
    (
        "README.md",
        "worker train configs/lenet.toml",
        &[
            "runs/lenet/summary.json",
            "runs/lenet/metrics.jsonl",
            "runs/lenet/predictions.json",
            "runs/lenet/checkpoints",
            "runs/lenet/curves.png",
            "runs/lenet/config.toml",
            "runs/lenet/journal.jsonl",
            "runs/lenet/dataset.json",
        ],
    ),
    ("README.md", "worker export runs/alexnet --to pth", &["runs/alexnet/model.pth"]),
    ("docs/course.md", "worker data show data/fashion-mnist", &["fashion-mnist-sheet.png"]),
    ("docs/course.md", "worker train configs/perceptron.toml", &["runs/perceptron/regions.png", "runs/perceptron/curves.png"]),
    ("docs/course.md", "worker train configs/perceptron-xor.toml", &["runs/perceptron-xor/regions.png"]),
    ("docs/course.md", "worker plot runs/softmax-mnist", &["runs/softmax-mnist/filters.png"]),
    ("docs/course.md", "worker plot --what activations --out .", &["activations.png"]),
    ("docs/course.md", "worker train configs/mlp-xor.toml", &["runs/mlp-xor/regions.png"]),
    ("docs/course.md", "worker train configs/mlp-xor.toml --set model.activation=identity", &["runs/mlp-xor-2/regions.png"]),
    ("docs/course.md", "worker filter --kernel edge PICTURE.jpg edges.png", &["edges.png"]),
    ("docs/course.md", "worker filter --kernel my-kernel.txt --flip --stride 2 --padding 0 PICTURE.jpg out.png", &["out.png"]),
    ("docs/course.md", "worker filter --kernel gaussian --column price prices.csv smooth.csv", &["smooth.csv"]),
    ("docs/course.md", "worker filter --kernel gaussian frames/ smooth-frames/", &["smooth-frames"]),
    ("docs/course.md", "worker plot runs/softmax runs/mlp runs/lenet runs/lenet-relu --out .", &["curves.png"]),
    ("docs/course.md", "worker eval runs/lenet-relu", &["runs/lenet-relu/confusion.png"]),
    ("docs/course.md", "worker predict runs/iris new-flowers.csv", &["runs/iris/summary.json"]),
    ("docs/data.md", "worker data pack pictures packed --short-side 256 --quality 90", &["packed"]),
    (
        "docs/deploy.md",
        "coordinator slurm configs/alexnet.toml --nodes 4 --gpus-per-node 8 --time 8h --sbatch=--partition=long",
        &["alexnet.sbatch"],
    ),
    ("docs/weights.md", "worker export runs/alexnet --to pth", &["runs/alexnet/model.pth"]),
    ("docs/weights.md", "worker export runs/alexnet --to safetensors --out alexnet.safetensors", &["alexnet.safetensors"]),
    ("docs/weights.md", "worker export runs/alexnet --to onnx --normalize --checkpoint 1480", &["runs/alexnet/model.onnx"]),
    ("docs/runs.md", "coordinator man DIR", &["DIR/coordinator.1"]),
];
