//! Who may take part, and what those can do who may not.

use std::time::{Duration, Instant};

use cluster_tests::scenario::{Scenario, free_port, join};
use cluster_tests::{Running, join_line};

/// Runs `coordinator token ...` and returns what it printed.
fn token(arguments: &[&str]) -> String {
    Running::start("coordinator", &[&["token"], arguments].concat()).wait().succeeded().stdout
}

#[test]
fn a_revoked_token_sends_its_workers_away_and_lets_nobody_in() {
    let scenario = Scenario::new(200);
    let expected = scenario.quiet();
    let mut coordinator = scenario.serve(free_port(), 2, &[]);
    let (addr, first) = join_line(&scenario.run_dir());
    let run_dir = scenario.run_dir().display().to_string();
    let second = token(&["new", &run_dir, "--expires", "1h"]).trim().to_owned();
    let expired = token(&["new", &run_dir, "--expires", "0s"]).trim().to_owned();
    let (good, bad) = (join(&addr, &first, &[]), join(&addr, &second, &[]));
    coordinator.wait_for_steps(10);
    join(&addr, &expired, &[]).wait().failed(1, &["this token has expired", "coordinator token new"]);

    let listed = token(&["list", &run_dir]);
    assert!(!listed.contains(&second[4..]), "the list shows no secret");
    let ids: Vec<&str> = listed.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    let states: Vec<&str> = listed.lines().skip(1).filter_map(|line| line.split_whitespace().last()).collect();
    assert_eq!(states, ["valid", "valid", "expired"], "{listed}");
    token(&["revoke", &run_dir, ids[1]]);
    let start = Instant::now();
    bad.wait().failed(1, &["its token was revoked"]);
    assert!(start.elapsed() < Duration::from_secs(10), "it should go soon");
    join(&addr, &second, &[]).wait().failed(1, &["this token was revoked"]);
    Running::start("coordinator", &["token", "revoke", &run_dir, "00000000"]).wait().failed(1, &["no token `00000000`"]);

    let run = coordinator.wait().succeeded();
    good.wait().succeeded();
    scenario.assert_whole(&run, &expected);
    for secret in [&first, &second, &expired] {
        assert!(!run.stderr.contains(secret.as_str()), "a token is in the log");
    }
}
