//! The page, the status and the metrics of real runs.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use cluster_tests::page::Page;
use cluster_tests::python::Python;
use cluster_tests::record::wait_for_ring;
use cluster_tests::scenario::{Scenario, events};
use cluster_tests::{Running, signal, until};
use serde_json::Value;

/// Workers whose heartbeats have told where their time goes.
fn known(status: &Value) -> usize {
    status["workers"].as_array().map_or(0, |workers| workers.iter().filter(|worker| worker["shares"].is_object()).count())
}

/// The value of a metric without labels, or with these.
fn metric(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn a_run_is_told_through_a_kill_a_recovery_and_its_end() {
    let scenario = Scenario::endless();
    let running = scenario.local(2).start();
    let page = Page::of(&running.path);
    let reader = page.events();
    let status = page.wait_for("status of two workers", |status| status["state"] == "training" && known(status) == 2);
    for worker in status["workers"].as_array().into_iter().flatten() {
        let shares = &worker["shares"];
        let sum: f64 = ["computing", "data", "others"].iter().filter_map(|part| shares[part].as_f64()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{worker}");
        assert!(worker["machine"] == "127.0.0.1" && worker["shards"] == 2 && worker["device"].is_string(), "{worker}");
    }
    let before = status["step"].as_u64();
    signal(running.children()[1], libc::SIGKILL);
    let status =
        page.wait_for("recovery", |status| status["recoveries"] == 1 && status["workers"].as_array().is_some_and(|w| w.len() == 2));
    assert!(status["step"].as_u64() >= before && status["last_recovery"]["resume_ms"].as_f64() > Some(0.0), "{status}");
    let text = page.get("/metrics").unwrap_or_default();
    assert_eq!(metric(&text, "ringleader_recoveries_total"), Some(1.0), "{text}");
    assert!(metric(&text, "ringleader_step") >= before.map(|step| step as f64), "{text}");
    assert_eq!(metric(&text, "ringleader_run_state{state=\"training\"}"), Some(1.0), "{text}");
    // A worker that is asked to leave does, and is not replaced.
    wait_for_ring(&running.path, 2);
    let name = status["workers"][1]["name"].as_str().unwrap_or_default().to_owned();
    page.post("/leave", &format!("{{\"worker\":\"{name}\"}}"));
    page.wait_for("ring of one", |status| status["workers"].as_array().is_some_and(|w| w.len() == 1));
    assert!(page.post("/token", "").contains("worker join 127.0.0.1:"));
    page.post("/stop", "");
    let run = running.wait().succeeded();
    assert!(run.stdout.contains("stopped; go on with --resume"), "{}", run.stdout);
    let told = reader.join().unwrap_or_default();
    let last = told.rsplit("data: ").next().unwrap_or_default();
    assert!(last.contains("\"state\":\"finished\""), "{last}");
    assert_eq!(events(&run.path, "recovered"), 1, "a clean goodbye is no loss");

    // The finished run, and its like beside it.
    let path = run.path.display().to_string();
    let shown = Running::start("coordinator", &["page", &path, &path, "--http", "127.0.0.1:0"]);
    let printed = || shown.output().lines().find_map(|line| Page::at(line.strip_prefix("page: ")?));
    let page = until("address", Duration::from_secs(20), printed);
    let status = page.wait_for("end of the record", |status| status["state"] == "finished");
    assert_eq!(status["step"].as_u64(), Some(run.steps().len() as u64), "{status}");
    assert_eq!(
        page.json("/runs.json").map(|runs| (runs["runs"].as_array().map_or(0, Vec::len), runs["may_act"].clone())),
        Some((2, false.into()))
    );
    // Each record is read by itself: the end of the first says nothing of the second.
    let facts = until("end of the second record", Duration::from_secs(20), || {
        let read = |facts: &Value| facts["events"].as_array().is_some_and(|events| events.iter().any(|e| e["kind"] == "finished"));
        page.json("/facts.json?run=1").filter(read)
    });
    let kinds: Vec<&str> = facts["events"].as_array().into_iter().flatten().filter_map(|event| event["kind"].as_str()).collect();
    for kind in ["start", "joined", "generation", "lost", "recovered", "finished"] {
        assert!(kinds.contains(&kind), "{kind} is not in {kinds:?}");
    }
    let curve = page.json("/curve.json").unwrap_or_default();
    assert!(curve["loss"].as_array().is_some_and(|loss| !loss.is_empty() && loss.iter().all(Value::is_f64)), "{curve}");
    shown.signal(libc::SIGINT);
    shown.wait().succeeded();
}

#[test]
fn prometheus_reads_the_metrics() {
    let Some((python, _)) = Python::with_browser() else { return };
    let scenario = Scenario::endless();
    let running = scenario.local(2).start();
    let page = Page::of(&running.path);
    page.wait_for("status of two workers", |status| known(status) == 2);
    let file = scenario.folder.path().join("metrics.txt");
    std::fs::write(&file, page.get("/metrics").unwrap_or_default()).unwrap_or_else(|e| panic!("{e}"));
    let families = python.run("read_metrics.py", &[&file]);
    for family in ["ringleader_step gauge", "ringleader_recoveries counter", "ringleader_worker_time_ratio gauge", "ringleader_run info"] {
        assert!(families.lines().any(|line| line == family), "{family} is not in {families}");
    }
    // What the dashboard asks for is there, or is documented as what is not known yet.
    let dashboard = std::fs::read_to_string(cluster_tests::project().join("deploy/grafana.json")).unwrap_or_default();
    let documented = std::fs::read_to_string(cluster_tests::project().join("docs/page.md")).unwrap_or_default();
    let words = |text: &str| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').map(str::to_owned).collect::<Vec<_>>();
    let asked: Vec<String> = words(&dashboard).into_iter().filter(|word| word.starts_with("ringleader_")).collect();
    let known = words(&documented);
    assert!(asked.len() > 15);
    asked.iter().for_each(|name| assert!(known.contains(name), "docs/page.md does not know {name}"));
    Scenario::stop(running);
}

#[test]
fn a_person_sees_a_run_live_lose_a_worker_recover_and_end() {
    let Some((python, chromium)) = Python::with_browser() else { return };
    let scenario = Scenario::endless().set("train.eval_epochs=1");
    let mut running = scenario.local(2).start();
    let page = Page::of(&running.path);
    running.wait_for_steps(10);
    let worker = running.children()[1].to_string();
    let shots = scenario.folder.path().join("shots");
    // For those who want to look at them.
    let shots = std::env::var_os("SCREENSHOTS").map_or(shots, Into::into);
    std::fs::create_dir_all(&shots).unwrap_or_else(|e| panic!("{e}"));
    let start = Instant::now();
    let printed = python.run("look_at_page.py", &[&chromium, page.url.as_ref(), worker.as_ref(), &shots]);
    println!("{printed} after {:?}", start.elapsed());
    let seen: Value = serde_json::from_str(&printed).unwrap_or_else(|e| panic!("{e}: {printed}"));
    assert_eq!(seen["problems"], Value::Array(Vec::new()));
    for view in seen["views"].as_array().into_iter().flatten() {
        assert!(view[2].as_u64() <= view[3].as_u64(), "the page is wider than the screen: {view}");
    }
    assert!(seen["bytes"].as_u64() < Some(200_000), "{seen}");
    // Tests beside this one take time from it; see the test below.
    assert!(seen["first_paint_ms"].as_f64() < Some(3000.0), "{seen}");
    assert_eq!(seen["predictions"], 8, "{seen}");
    for shot in ["desktop-light", "desktop-dark", "phone-light", "phone-dark", "end", "predictions-desktop-light", "predictions-phone-dark"]
    {
        assert!(shots.join(shot).with_extension("png").metadata().is_ok_and(|file| file.len() > 10_000), "{shot}");
    }
    running.wait().succeeded();
}

/// Steps of a long run.
const LONG: usize = 500_000;

/// What a machine takes for an empty page on which this page has its 300 ms; a slower one has
/// as much more of both.
const EMPTY_MS: f64 = 60.0;

/// Makes a run of a few steps one of [`LONG`] by its config and its record.
fn lengthen(run: &Path) -> std::io::Result<()> {
    let config = std::fs::read_to_string(run.join("config.toml"))?;
    let longer = config.replace("max_steps = 4", &format!("max_steps = {LONG}"));
    assert_ne!(longer, config, "{config}");
    std::fs::write(run.join("config.toml"), longer)?;
    let mut metrics = BufWriter::new(File::create(run.join("metrics.jsonl"))?);
    for step in 0..LONG {
        let (loss, epoch) = (6.9 / (1.0 + step as f64 / 7e4) + (step % 97) as f64 * 1e-3, step / 200);
        writeln!(
            metrics,
            r#"{{"step":{step},"epoch":{epoch},"loss":{loss},"top1":0.125,"lr":0.01,"grad_norm":1.25,"samples":32,"samples_checksum":"00a1b2c3d4e5f607","step_ms":101.5,"data_wait_ms":1.5,"compute_ms":80.25,"all_reduce_exposed_ms":9.75,"product_ms":0.0,"update_ms":10.0,"images_per_second":315.2}}"#
        )?;
        if (step + 1) % 400 == 0 {
            let (step, top1) = (step + 1, 1.0 - loss / 8.0);
            writeln!(metrics, r#"{{"eval":{{"step":{step},"epoch":{epoch},"loss":{loss},"top1":{top1},"top5":{top1},"samples":50}}}}"#)?;
        }
    }
    metrics.flush()
}

#[test]
fn the_page_of_a_long_run_is_painted_at_once_and_is_small() {
    let Some((python, chromium)) = Python::with_browser() else { return };
    // Of one process, whose pictures are shown as those of a cluster are.
    let scenario = Scenario::new(4).set("train.epochs=10000");
    let run = scenario.single().wait().succeeded();
    lengthen(&run.path).unwrap_or_else(|e| panic!("{e}"));
    let shown = Running::start("coordinator", &["page", &run.path.display().to_string(), "--http", "127.0.0.1:0"]);
    let printed = || shown.output().lines().find_map(|line| Page::at(line.strip_prefix("page: ")?));
    let page = until("address", Duration::from_secs(20), printed);
    page.wait_for("end of the record", |status| status["step"] == LONG);
    let printed = python.run("first_paint.py", &[&chromium, page.url.as_ref()]);
    println!("{printed}");
    let measured: Value = serde_json::from_str(&printed).unwrap_or_else(|e| panic!("{e}: {printed}"));
    let all = |name: &str| measured[name].as_array().into_iter().flatten().filter_map(Value::as_f64).collect::<Vec<_>>();
    let least = |name: &str| all(name).into_iter().reduce(f64::min).unwrap_or(f64::INFINITY);
    let allowed = 300.0 * (least("empty_ms") / EMPTY_MS).max(1.0);
    assert!(least("paints_ms") < allowed, "{} ms, and {allowed} ms are allowed: {printed}", least("paints_ms"));
    assert!(all("bytes").iter().all(|bytes| (10_000.0..200_000.0).contains(bytes)), "{printed}");
    shown.signal(libc::SIGINT);
    shown.wait().succeeded();
}
