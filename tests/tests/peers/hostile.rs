//! A peer that was admitted is hostile. Whatever it sends, requests or holds up, only
//! that peer is hurt: the run ends with the weights of the undisturbed one.
//!
//! Runs are shared: each test plays several attacks, one after the other.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cluster_tests::chaos::conditions::Conditions;
use cluster_tests::chaos::{Chaos, Fault};
use cluster_tests::hostile::member::{AsDonor, Behaviour, Counts, InRing, play};
use cluster_tests::hostile::{HostilePeer, put, ready_on, runtime};
use cluster_tests::scenario::Scenario;
use cluster_tests::{Running, record, resident_mb, until};
use common::audit::TrainedSamples;
use common::wire::messages::{BulkReply, BulkRequest, ToCoordinator, ToWorker};

const WORKERS: u32 = 2;

/// A step that no run of these tests reaches.
const TO_COME: u64 = 4999;

/// How much more memory than before the coordinator and the workers may take, in MB.
const MEMORY_MB: f64 = 50.0;

/// The run has checkpoints to fall back to, and to tamper with.
fn scenario() -> Scenario {
    Scenario::open_to_hostile_peers().set("train.checkpoint_steps=40").set("cluster.stall_ms=3000")
}

/// A run that trains, so slowly that there is time for every attack.
fn train(scenario: &Scenario, seed: u64) -> Chaos<'_> {
    let mut chaos = Chaos::start(scenario, WORKERS, seed);
    chaos.settle_conditions(Conditions { delay: Duration::from_millis(8), ..Conditions::default() });
    chaos.coordinator().wait_for_steps(10);
    chaos
}

fn address(chaos: &Chaos<'_>) -> String {
    chaos.coordinator_address().to_string()
}

/// A new token, which can be revoked by itself; and its id.
fn token(chaos: &Chaos<'_>) -> (String, String) {
    let run = chaos.run_dir().display().to_string();
    let coordinator = |arguments: &[&str]| Running::start("coordinator", &[&["token"], arguments].concat()).wait().succeeded().stdout;
    let token = coordinator(&["new", &run, "--expires", "1h"]).trim().to_owned();
    let listed = coordinator(&["list", &run]);
    let id = listed.lines().last().and_then(|line| line.split_whitespace().next()).unwrap_or_else(|| panic!("no token: {listed}"));
    (token, id.to_owned())
}

fn revoke(chaos: &Chaos<'_>, id: &str) {
    Running::start("coordinator", &["token", "revoke", &chaos.run_dir().display().to_string(), id]).wait().succeeded();
}

/// Lets a peer of these behaviour act for a while. Returns the steps a second meanwhile.
fn endures(chaos: &Chaos<'_>, behaviour: Behaviour, time: Duration) -> f64 {
    let runtime = runtime();
    let (counts, stop) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
    let hostile = Arc::new(runtime.block_on(HostilePeer::enrolled(&address(chaos), chaos.token())));
    let playing = runtime.spawn(play(hostile, behaviour, Arc::clone(&counts), Arc::clone(&stop)));
    until("welcome of a hostile peer", Duration::from_secs(20), || (counts.welcomed.load(Ordering::Relaxed) > 0).then_some(()));
    let (before, rings) = (record::committed(chaos.run_dir()), record::generations(chaos.run_dir()).len());
    std::thread::sleep(time);
    stop.store(true, Ordering::Relaxed);
    runtime.block_on(playing).unwrap_or_else(|e| panic!("{e}"));
    let (steps, rings) = (record::committed(chaos.run_dir()) - before, record::generations(chaos.run_dir()).len() - rings);
    println!("{behaviour:?}: {counts:?}, {steps} steps and {rings} generations in {time:?}");
    steps as f64 / time.as_secs_f64()
}

/// Messages and requests of a peer outside of the ring do not affect the ring.
#[test]
fn one_beside_the_ring_harms_nobody() {
    let scenario = scenario();
    let mut chaos = train(&scenario, 1);
    reports_of_one_that_is_no_member_are_not_taken(&mut chaos);
    one_that_speaks_after_its_revocation_is_not_let_in(&chaos);
    says_what_a_terminal_would_obey(&chaos);
    checkpoints_of_steps_to_come_delete_no_true_ones(&mut chaos);
    one_that_asks_and_does_not_read_takes_no_memory_and_no_turn(&mut chaos);
    let run = chaos.stop_undisturbed();
    assert_eq!(run.summary()["generations"], 1, "the ring had to form anew: {}", run.stderr);
    assert!(!run.stderr.contains("UNTRUE"), "what it said it skipped is in the log: {}", run.stderr);
    let untrue = trained(&run.path).into_iter().filter(|t| !t.skipped.is_empty()).count();
    assert_eq!(untrue, 0, "what it said is on the record");
    let raw = |c: char| c.is_control() && c != '\n';
    for line in run.stderr.lines().chain(run.stdout.lines()) {
        assert!(!line.contains(raw) && !line.starts_with("FORGED"), "a peer has written {line:?}");
    }
}

/// A peer that is let into rings may hold one up, but gives no worker a state.
#[test]
fn a_newcomer_gives_no_state_and_keeps_nobody_out_of_a_ring() {
    let scenario = scenario();
    let mut chaos = train(&scenario, 2);
    for donor in [AsDonor::Refuses, AsDonor::Garbage { digest: false }, AsDonor::Garbage { digest: true }] {
        endures(&chaos, Behaviour { claim: TO_COME, ring: InRing::NeverForms, donor }, Duration::from_secs(4));
    }
    silent_ring_connections_keep_nobody_out_and_end_with_their_token(&mut chaos);
    chaos.stop_undisturbed();
}

/// The member may hold the ring up once, for as long as the stall timeout; after that
/// it is left out for longer and longer.
#[test]
fn a_member_that_does_not_take_part_is_left_out() {
    const QUIET: Duration = Duration::from_secs(4);
    const THERE: Duration = Duration::from_secs(12);
    let scenario = scenario().set("train.checkpoint_steps=1000000");
    let mut chaos = train(&scenario, 3);
    let run = chaos.run_dir().to_owned();
    for ring in [InRing::NeverForms, InRing::NeverSends] {
        let before = record::committed(&run);
        std::thread::sleep(QUIET);
        let quiet = (record::committed(&run) - before) as f64 / QUIET.as_secs_f64();
        let disturbed = endures(&chaos, Behaviour { claim: 0, ring, donor: AsDonor::Refuses }, THERE);
        println!("{ring:?}: {:.0} % of the steps before", 100.0 * disturbed / quiet);
        assert!(disturbed > 0.5 * quiet, "{ring:?}: {quiet:.1} steps a second, then {disturbed:.1}\n{}", chaos.coordinator().log());
    }
    chaos.stop_undisturbed();
}

/// What each rank reports that it trained on.
fn trained(run: &Path) -> Vec<TrainedSamples> {
    let text = std::fs::read_to_string(run.join("audit.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn reports_of_one_that_is_no_member_are_not_taken(chaos: &mut Chaos<'_>) {
    let run = chaos.run_dir().to_owned();
    // The lie: rank 0 has left out the samples that it did train on in an early step.
    let of_step_2 = || trained(&run).into_iter().find(|t| t.step == 2 && t.rank == 0);
    let truth = until("record of what step 2 was trained on", Duration::from_secs(20), of_step_2);
    runtime().block_on(async {
        let hostile = HostilePeer::enrolled(&address(chaos), chaos.token()).await;
        let mut conversation = hostile.speak().await;
        assert!(conversation.send(&hostile.greeting()).await, "it could not say hello");
        assert!(matches!(conversation.hear().await, Some(ToWorker::Welcome { .. })), "it was not welcomed");
        for step in [2, 150] {
            let lie = TrainedSamples { step, ids: vec![], skipped: truth.ids.clone(), ..truth.clone() };
            let _ = conversation.send(&ToCoordinator::Trained(lie)).await;
            let (name, problem) = ("UNTRUE picture".to_owned(), "UNTRUE problem".to_owned());
            let _ = conversation.send(&ToCoordinator::Skipped { step, name, problem }).await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    });
    chaos.coordinator().wait_for_steps(60);
}

fn one_that_speaks_after_its_revocation_is_not_let_in(chaos: &Chaos<'_>) {
    let (token, id) = token(chaos);
    runtime().block_on(async {
        let hostile = HostilePeer::enrolled(&address(chaos), &token).await;
        let mut early = hostile.speak().await;
        revoke(chaos, &id);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        // The peer may be cut off before it has sent everything.
        let _ = early.send(&hostile.greeting()).await && early.send(&ready_on("none", 0, 0)).await;
        let heard = early.listen(Duration::from_secs(4)).await;
        assert!(heard.iter().all(|message| matches!(message, ToWorker::Refused { .. })), "it was let in: {heard:?}");
    });
}

fn says_what_a_terminal_would_obey(chaos: &Chaos<'_>) {
    const EVIL: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\r\nFORGED line \u{9b}31m\u{0}\u{8}\u{7f}";
    runtime().block_on(async {
        let hostile = HostilePeer::enrolled(&address(chaos), chaos.token()).await;
        let failed = ToCoordinator::Failed { reason: EVIL.to_owned(), run: true };
        let skipped = ToCoordinator::Skipped { step: 1, name: EVIL.to_owned(), problem: EVIL.to_owned() };
        for said in [vec![skipped], vec![ready_on(EVIL, 0, 0)], vec![failed]] {
            let mut conversation = hostile.speak().await;
            let _ = conversation.send(&hostile.greeting()).await;
            for message in &said {
                let _ = conversation.send(message).await;
            }
            let _ = conversation.listen(Duration::from_millis(700)).await;
        }
    });
}

fn checkpoints_of_steps_to_come_delete_no_true_ones(chaos: &mut Chaos<'_>) {
    let run = chaos.run_dir().to_owned();
    let kept = until("checkpoint", Duration::from_secs(60), || record::checkpoints(&run).last().copied());
    let runtime = runtime();
    runtime.block_on(async {
        // A member whose machine was compromised.
        let hostile = HostilePeer::named(&run, &address(chaos), "worker-1");
        for step in [TO_COME, TO_COME + 1] {
            let reply = hostile.ask(&put("model.safetensors", step, 4), &[0xa5; 8]).await;
            assert!(
                !matches!(reply, Some(BulkReply::Stored)),
                "a checkpoint of step {step} was stored at step {}",
                record::committed(&run)
            );
        }
        // A checkpoint of the newest step, whose content cannot be this run's model.
        let step = record::committed(&run);
        let reply = hostile.ask(&put("model.safetensors", step, 4), &[0xa5; 8]).await;
        assert!(!matches!(reply, Some(BulkReply::Stored)), "noise was stored as the checkpoint of step {step}");
    });
    let there = record::checkpoints(&run);
    assert!(there.iter().any(|step| *step >= kept) && there.iter().all(|step| *step < TO_COME), "{there:?}, {kept} was there");
    chaos.coordinator().wait_for_steps(kept as usize + 45);
}

fn one_that_asks_and_does_not_read_takes_no_memory_and_no_turn(chaos: &mut Chaos<'_>) {
    let pid = chaos.coordinator().id();
    let before = resident_mb(pid);
    let runtime = runtime();
    let most = runtime.block_on(async {
        let hostile = HostilePeer::named(chaos.run_dir(), &address(chaos), "worker-1");
        let held = hostile.asks_and_does_not_read(4, 16).await;
        println!("{} requests wait for somebody to read", held.iter().map(|unread| unread.streams.len()).sum::<usize>());
        let mut most = before;
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            most = most.max(resident_mb(pid));
        }
        println!("the coordinator held {before:.1} MB before and {most:.1} MB meanwhile");
        let honest = HostilePeer::named(chaos.run_dir(), &address(chaos), "worker-2");
        let reply = honest.ask(&BulkRequest::Samples { val: false, ids: vec![0, 1, 2] }, &[]).await;
        assert!(matches!(&reply, Some(BulkReply::Samples { labels, .. }) if labels.len() == 3), "others get no turn: {reply:?}");
        most
    });
    assert!(most < before + MEMORY_MB, "the coordinator held {before:.1} MB before and {most:.1} MB meanwhile");
}

fn silent_ring_connections_keep_nobody_out_and_end_with_their_token(chaos: &mut Chaos<'_>) {
    let run = chaos.run_dir().to_owned();
    let (token, id) = token(chaos);
    let ring = chaos.ring_address(0);
    let name = until("name of the first worker", Duration::from_secs(5), || record::name_of(&run, ring));
    let runtime = runtime();
    let (held, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let hostile = Arc::new(runtime.block_on(HostilePeer::enrolled(&address(chaos), &token)));
    let holding = runtime.spawn(Arc::clone(&hostile).holds_rings(ring, name, 90, Duration::ZERO, Arc::clone(&held), Arc::clone(&stop)));
    // Members expect connections of this peer once it is to be probed; it does not
    // answer the probe.
    let mut newcomer = runtime.block_on(hostile.speak());
    runtime.block_on(async { newcomer.send(&hostile.greeting()).await && newcomer.send(&ready_on("none", 0, 0)).await });
    until("silent ring connection", Duration::from_secs(5), || (held.load(Ordering::Relaxed) > 0).then_some(()));
    std::thread::sleep(Duration::from_secs(2));
    println!("{} of 90 silent ring connections are open", held.load(Ordering::Relaxed));

    // The ring has to form anew meanwhile.
    let rings = record::generations(&run).len();
    chaos.inflict(&Fault::Kill { worker: 1 });
    let whole = || record::generations(&run).into_iter().skip(rings).find(|g| g.members.len() == WORKERS as usize).map(|g| g.step);
    let from = until("new ring of all while silent connections are held", Duration::from_secs(15), whole);
    until("step of the new ring", Duration::from_secs(10), || (record::committed(&run) > from + 3).then_some(()));

    revoke(chaos, &id);
    let none = || (held.load(Ordering::Relaxed) == 0).then_some(());
    until("end of the connections whose token was revoked", Duration::from_secs(10), none);
    stop.store(true, Ordering::Relaxed);
    runtime.block_on(holding).unwrap_or_else(|e| panic!("{e}"));
}
