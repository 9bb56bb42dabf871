//! Runs that begin with weights from a file: workers get them from the coordinator, and a
//! run that has begun does not need the file.

use cluster_tests::scenario::{Scenario, digest};

#[test]
fn any_number_of_workers_begins_with_the_weights_of_a_file_that_may_then_go() {
    let giver = Scenario::new(2);
    giver.single().wait().succeeded();
    let weights = giver.folder.path().join("weights.safetensors");
    std::fs::copy(giver.run_dir().join("checkpoints/step-00000002/model.safetensors"), &weights).unwrap_or_else(|e| panic!("{e}"));

    // Other classes than those of the file.
    let begin = |steps: usize| Scenario::new(steps).set("data.classes=6").set(&format!("model.weights={}", weights.display()));
    let scenario = begin(6);
    let expected = scenario.quiet();
    assert_ne!(expected, Scenario::new(6).set("data.classes=6").quiet());
    let run = scenario.local(2).run().succeeded();
    assert_eq!(run.digest(), expected);
    for words in ["begins with the weights of", "`dense3` is new", "10 outputs in the file, and 6 here"] {
        assert_eq!(run.stderr.matches(words).count(), 2, "{words}: {}", run.stderr);
    }

    // A run that is stopped, and goes on where its file is gone; so does one without a
    // checkpoint, from the copy.
    let scenario = begin(6).set("train.checkpoint_steps=1000000");
    let mut first = scenario.local(2).set("train.max_steps=1000").start();
    first.wait_for_steps(1);
    first.signal(libc::SIGKILL);
    first.await_end();
    std::fs::rename(&weights, weights.with_extension("gone")).unwrap_or_else(|e| panic!("{e}"));
    let resumed = scenario.local(2).arg("--resume").run().succeeded();
    assert!(resumed.stderr.contains("goes by the copy of the weights"), "{}", resumed.stderr);
    assert_eq!(digest(&scenario.run_dir()), expected);
}

#[test]
fn weights_that_do_not_fit_end_the_run_with_what_differs() {
    let giver = Scenario::new(1);
    giver.single().wait().succeeded();
    let weights = format!("model.weights={}", giver.run_dir().display());
    let failed = Scenario::new(3).set("model.width=0.25").set(&weights).local(2).run();
    assert!(!failed.status.success());
    for words in ["are those of another model", "conv1.weight [24, 3, 11, 11]", "conv1.weight [12, 3, 11, 11]"] {
        assert!(failed.stderr.contains(words), "{words}: {}", failed.stderr);
    }
}

#[test]
fn frozen_layers_keep_the_weights_of_the_file_and_are_not_exchanged() {
    let giver = Scenario::new(2);
    giver.single().wait().succeeded();
    let begin = |steps: usize| Scenario::new(steps).set(&format!("model.weights={}", giver.run_dir().display()));
    let frozen = |steps: usize| begin(steps).set("train.freeze=[\"features\", \"dense2\"]").set("train.ema=0.9");

    let undisturbed = frozen(12);
    let expected = undisturbed.quiet();
    let values = |run: &std::path::Path, step: usize| {
        let file = run.join(format!("checkpoints/step-{step:08}/model.safetensors"));
        let bytes = std::fs::read(&file).unwrap_or_else(|e| panic!("`{}`: {e}", file.display()));
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{e}"));
        let mut all: Vec<(String, Vec<u8>)> = tensors.tensors().into_iter().map(|(name, t)| (name, t.data().to_vec())).collect();
        all.sort();
        all
    };
    let before = values(&giver.run_dir(), 2);
    for ((name, before), (_, after)) in before.iter().zip(&values(&undisturbed.folder.path().join("quiet"), 12)) {
        let is_trained = name.starts_with("dense1") || name.starts_with("dense3");
        assert_eq!(before != after, is_trained, "{name}");
    }

    // A worker that is killed gets the state of the others.
    let disturbed = frozen(12);
    let mut run = disturbed.local(3).start();
    run.wait_for_steps(3);
    cluster_tests::signal(run.children()[0], libc::SIGKILL);
    assert_eq!(run.wait().succeeded().digest(), expected);

    // Only gradients of the trained layers travel.
    let sent = |scenario: Scenario| scenario.set("cluster.dense=sum").local(2).run().succeeded().summary()["bytes_sent"].as_f64();
    let (Some(of_frozen), Some(of_all)) = (sent(frozen(4)), sent(begin(4))) else { panic!("no bytes in a summary") };
    let parameters = |names: fn(&str) -> bool| before.iter().filter(|(name, _)| names(name)).map(|(_, bytes)| bytes.len()).sum::<usize>();
    let share = parameters(|name| name.starts_with("dense1") || name.starts_with("dense3")) as f64 / parameters(|_| true) as f64;
    assert!((of_frozen / of_all / share - 1.0).abs() < 0.1, "{of_frozen} of {of_all} bytes, and {share} of the parameters");
}
