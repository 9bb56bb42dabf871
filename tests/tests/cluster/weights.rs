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
