//! Machines in several networks: which addresses a join line has, and that workers which
//! came by different ones reach each other, are relayed, or are told that they do not.

use std::time::{Duration, Instant};

use cluster_tests::netns::Machines;
use cluster_tests::scenario::{Scenario, events, free_port, join as join_here};
use cluster_tests::{Running, join_line, record, until};

const SOON: Duration = Duration::from_secs(20);

/// `worker join` on one of the machines, by these addresses.
fn join(machines: &Machines, number: u32, addresses: &str, token: &str, more: &[&str]) -> Running {
    let addresses: Vec<&str> = addresses.split(' ').collect();
    Running::start_within(machines.name(number), "worker", &[&["join"], &addresses[..], &["--token", token], more].concat())
}

fn port(addresses: &str) -> &str {
    addresses.rsplit(':').next().unwrap_or_default()
}

/// One worker came by the coordinator's loopback address, the other from another machine.
#[test]
fn a_worker_that_came_by_loopback_gets_an_address_that_others_reach() {
    let Some(machines) = Machines::new(2) else { return };
    machines.link(0, 1, &[("10.77.1.1/24", "10.77.1.2/24"), ("fd77:1::1/64", "fd77:1::2/64")]);
    machines.set(0, &["link", "add", "docker0", "type", "bridge"]);
    machines.set(0, &["address", "add", "172.17.0.1/16", "dev", "docker0"]);
    let scenario = Scenario::new(6);
    let coordinator = scenario.serve_within(machines.name(0), "[::]:0", 2);
    let (line, token) = join_line(&scenario.run_dir());
    let port = port(&line);
    // A bridge without anything behind it is not up.
    assert_eq!(line, format!("10.77.1.1:{port} [fd77:1::1]:{port}"));
    until("printed join line", SOON, || coordinator.output().contains(&format!("worker join {line} --token")).then_some(()));
    let start = Instant::now();
    let by_loopback = join(&machines, 0, &format!("127.0.0.1:{port}"), &token, &[]);
    // The first address leads nowhere from here.
    let by_network = join(&machines, 1, &format!("10.77.1.9:{port} {line}"), &token, &["--wait", "1m"]);
    let run = coordinator.wait().succeeded();
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    by_loopback.wait().succeeded();
    by_network.wait().succeeded();
    assert_eq!((run.steps().len(), events(&run.path, "generation"), events(&run.path, "left_out")), (6, 1, 0), "{}", run.stderr);
}

#[test]
fn machines_that_have_ipv6_alone_train_together() {
    let Some(machines) = Machines::new(2) else { return };
    machines.link(0, 1, &[("fd77:2::1/64", "fd77:2::2/64")]);
    let scenario = Scenario::new(4);
    // Asked for any IPv4 address, it has those of both families.
    let coordinator = scenario.serve_within(machines.name(0), "0.0.0.0:0", 2);
    let (line, token) = join_line(&scenario.run_dir());
    assert_eq!(line, format!("[fd77:2::1]:{}", port(&line)));
    let here = join(&machines, 0, &format!("[::1]:{}", port(&line)), &token, &[]);
    let there = join(&machines, 1, &line, &token, &[]);
    let run = coordinator.wait().succeeded();
    here.wait().succeeded();
    there.wait().succeeded();
    assert_eq!((run.steps().len(), events(&run.path, "left_out")), (4, 0), "{}", run.stderr);
}

/// A machine in each of two networks, between which nothing is routed, in a run that does not
/// relay: everybody is told, and no generation forms. Two workers of one network train meanwhile.
#[test]
fn workers_that_do_not_reach_each_other_are_told_by_name_before_a_generation_forms() {
    let Some(machines) = Machines::new(3) else { return };
    machines.link(0, 1, &[("10.77.3.1/24", "10.77.3.2/24")]);
    machines.link(0, 2, &[("10.77.4.1/24", "10.77.4.2/24")]);
    let scenario = Scenario::endless().set("cluster.relay=false");
    let coordinator = scenario.serve_within(machines.name(0), "[::]:0", 2);
    let (line, token) = join_line(&scenario.run_dir());
    assert_eq!(line.split(' ').count(), 2, "{line}");
    let first = join(&machines, 1, &line, &token, &[]);
    until("first worker", SOON, || (events(&scenario.run_dir(), "worker_joined") == 1).then_some(()));
    let second = join(&machines, 2, &line, &token, &[]);
    for process in [&coordinator, &first, &second] {
        until("word of whom is left out", SOON, || {
            let log = process.log();
            let told = log.contains("worker-2 is left out") && log.contains("worker-1") && log.contains("--advertise");
            told.then_some(())
        });
    }
    assert_eq!(events(&scenario.run_dir(), "generation"), 0);
    // One that both reach: on the coordinator's machine. It trains with the older of the two.
    let third = join(&machines, 0, &format!("127.0.0.1:{}", port(&line)), &token, &[]);
    until("generation", SOON, || (events(&scenario.run_dir(), "generation") >= 1).then_some(()));
    coordinator.signal(libc::SIGINT);
    coordinator.wait();
    [first, second, third].into_iter().for_each(drop);
}

/// Two workers on one machine, and one on another that reaches only the coordinator: it is
/// relayed, its loss is survived, and one in its place gets its state through the relay.
#[test]
fn a_worker_that_only_reaches_the_coordinator_is_relayed() {
    let Some(machines) = Machines::new(3) else { return };
    machines.link(0, 1, &[("10.77.5.1/24", "10.77.5.2/24")]);
    machines.link(0, 2, &[("10.77.6.1/24", "10.77.6.2/24")]);
    let scenario = Scenario::endless();
    let coordinator = scenario.serve_within(machines.name(0), "[::]:0", 3);
    let run = scenario.run_dir();
    let (line, token) = join_line(&run);
    let near = [(), ()].map(|()| join(&machines, 1, &line, &token, &[]));
    until("two workers", SOON, || (events(&run, "worker_joined") == 2).then_some(()));
    let far = join(&machines, 2, &line, &token, &[]);
    let trains = |generation: usize, world: usize| {
        let from = until("generation", SOON, || {
            let generations = record::generations(&run);
            generations.get(generation - 1).filter(|g| g.members.len() == world).map(|g| g.step)
        });
        until("steps", SOON, || (record::committed(&run) > from + 5).then_some(()));
    };
    trains(1, 3);
    assert_eq!((events(&run, "left_out"), events(&run, "relayed")), (0, 2), "{}", coordinator.log());
    // Both pairs of the third worker in the coordinator's words, and each in its own workers'.
    let pairs = |log: &str| {
        let said: Vec<&str> = log.lines().filter(|line| line.contains("only through the coordinator")).collect();
        assert!(said.iter().all(|line| line.contains("worker-3") && line.contains("--advertise")), "{log}");
        said.len()
    };
    until("word of all pairs", SOON, || {
        let said = [&coordinator, &far, &near[0], &near[1]].map(|process| pairs(&process.log()));
        (said == [2, 2, 1, 1]).then_some(())
    });
    far.signal(libc::SIGKILL);
    trains(2, 2);
    let another = join(&machines, 2, &line, &token, &[]);
    trains(3, 3);
    assert_eq!((events(&run, "left_out"), events(&run, "relayed")), (0, 4), "{}", coordinator.log());
    let stopped = Scenario::stop(coordinator);
    another.wait().succeeded();
    near.into_iter().for_each(|worker| _ = worker.wait().succeeded());
    drop(far);
    scenario.assert_undisturbed(&stopped);
}

/// Needs no namespaces: two workers on one machine whose addresses are of different families.
#[test]
fn workers_of_unlike_networks_are_relayed() {
    let scenario = Scenario::new(6);
    let port = free_port();
    let coordinator = scenario.serve_on(&format!("[::]:{port}"), 2, &[], &[]);
    let token = join_line(&scenario.run_dir()).1;
    let join = |host: &str| join_here(&format!("{host}:{port}"), &token, &["--listen", &format!("{host}:0")]);
    let workers = ["127.0.0.1", "[::1]"].map(join);
    let run = coordinator.wait().succeeded();
    workers.into_iter().for_each(|worker| _ = worker.wait().succeeded());
    assert_eq!((events(&run.path, "relayed"), events(&run.path, "left_out")), (1, 0), "{}", run.stderr);
    scenario.assert_whole(&run, &scenario.quiet());
}
