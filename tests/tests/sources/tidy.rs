//! Invariants of the sources themselves.

use std::path::{Path, PathBuf};

use cluster_tests::{Running, project};

/// Every source file of the workspace.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for krate in ["common", "worker", "coordinator", "tests", "examples"] {
        collect(&project().join(krate), &mut found);
    }
    assert!(found.len() > 50, "only {} sources were found", found.len());
    found
}

/// Adds the sources in a folder, and in those below it.
pub(crate) fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    collect_files(folder, "rs", found);
}

/// Adds the files that end in `extension` in a folder, and in those below it.
fn collect_files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())).flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect_files(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

pub(crate) fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn files_stay_under_500_lines() {
    for path in sources() {
        let lines = read(&path).lines().count();
        assert!(lines < 500, "{} has {lines} lines: cut it where the subject changes", path.display());
    }
}

/// The files that decide use no socket, no clock and no runtime.
#[test]
fn pure_files_stay_pure() {
    let pure = [
        "common/src/plan.rs",
        "common/src/seed.rs",
        "common/src/ring/schedule.rs",
        "common/src/ring/bucket.rs",
        "common/src/ring/encoding.rs",
        "coordinator/src/membership/mod.rs",
        "coordinator/src/membership/back_off.rs",
        "coordinator/src/membership/balance.rs",
        "coordinator/src/membership/events.rs",
        "coordinator/src/membership/forming.rs",
        "coordinator/src/membership/heartbeats.rs",
        "coordinator/src/membership/joining.rs",
        "coordinator/src/membership/lineage.rs",
        "coordinator/src/membership/listening.rs",
        "coordinator/src/membership/losing.rs",
        "coordinator/src/membership/pace.rs",
        "coordinator/src/membership/paths.rs",
        "coordinator/src/membership/sharing.rs",
        "coordinator/src/membership/staging.rs",
        "coordinator/src/membership/state.rs",
        "common/src/diagnosis/verdicts.rs",
        "common/src/status.rs",
        "coordinator/src/limits.rs",
        "coordinator/src/page/curve.rs",
        "coordinator/src/page/document.rs",
        "coordinator/src/page/gate.rs",
        "coordinator/src/page/history.rs",
        "coordinator/src/page/prometheus.rs",
        "common/src/audit.rs",
        "common/src/timing.rs",
        "common/src/ring/fixed.rs",
        "common/src/ring/sim/mod.rs",
        "common/src/ring/sim/model.rs",
        "common/src/ring/sim/engine.rs",
        "worker/src/training/schedule.rs",
        "worker/src/training/job.rs",
        "worker/src/training/early_stop.rs",
    ];
    for path in pure {
        let text = read(&project().join(path));
        for word in ["tokio", "quinn", "Instant::now", "SystemTime", "thread_rng", "std::fs", "async fn"] {
            assert!(!text.contains(word), "{path} names {word}");
        }
    }
}

#[test]
fn only_one_module_knows_libtorch_and_common_knows_no_tensor() {
    for path in sources() {
        let text = read(&path);
        let name = path.display().to_string();
        // "tch::" also ends "fetch::".
        let names = |line: &str, word: &str| {
            let before = line.find(word).map(|at| line[..at].chars().next_back());
            before.is_some_and(|c| c.is_none_or(|c| !c.is_alphanumeric() && c != '_'))
        };
        let knows = |word: &str| text.lines().any(|l| !l.trim_start().starts_with("//") && names(l, word));
        if !name.contains("worker/src/engine/libtorch/") && !name.ends_with("tests/tests/sources/tidy.rs") {
            assert!(!knows("tch::") && !knows("burn_tch"), "{name} names libtorch's types");
        }
        if name.contains("/common/") || name.contains("/coordinator/") {
            assert!(!knows("burn::"), "{name} names burn");
        }
    }
}

/// The standard library's print macros panic if the output cannot be written, and
/// code that ends the process loses the output that still waits to be written.
#[test]
fn only_one_module_speaks_and_ends_the_process() {
    for path in sources() {
        let name = path.display().to_string();
        let product = ["common/src/", "worker/src/", "coordinator/src/"].iter().any(|part| name.contains(part));
        let whole = ["/src/net/tests/", "/src/ring/tests/", "/membership/schedules.rs", "/membership/world.rs"];
        let of_tests = path.file_name().is_some_and(|file| file.to_string_lossy().starts_with("tests"))
            || whole.iter().any(|part| name.contains(part));
        if !product || of_tests || name.ends_with("common/src/ui/output.rs") {
            continue;
        }
        let text = read(&path);
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for word in ["print!(", "println!(", "process::exit(", "io::stderr().write", "stdout().write"] {
            let line = code.lines().find(|line| line.contains(word) && !line.trim_start().starts_with("//"));
            assert_eq!(line, None, "{name} speaks past common::ui: use its say, tell, answer or exit");
        }
    }
}

#[test]
fn every_config_is_valid() {
    let folder = project().join("configs");
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{e}")).flatten() {
        let path = entry.path().display().to_string();
        if !path.ends_with(".toml") {
            continue;
        }
        let text = read(&entry.path());
        let said = text.lines().find(|line| !line.starts_with("#:"));
        assert!(said.is_some_and(|line| line.starts_with("# ")), "{path} should begin by saying what it is");
        // A data path that does not exist is reported only after the config itself
        // was found valid.
        let checked = Running::start("coordinator", &["check", &path]).wait();
        assert!(checked.status.code() != Some(2), "{path}: {}", checked.stderr);
        seen += 1;
    }
    assert!(seen >= 14);
}

/// The names by which the sections of a document can be linked to.
fn sections(text: &str) -> impl Iterator<Item = String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim().to_lowercase());
    headings.map(|heading| heading.replace(' ', "-").chars().filter(|c| c.is_alphanumeric() || *c == '-').collect())
}

#[test]
fn documents_name_only_what_exists() {
    let makefile = read(&project().join("Makefile"));
    for document in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "docs/cluster.md",
        "docs/course.md",
        "docs/data.md",
        "docs/deploy.md",
        "docs/failure.md",
        "docs/own-model.md",
        "docs/page.md",
        "docs/records.md",
        "docs/runs.md",
        "docs/training.md",
        "docs/weights.md",
        "benches/README.md",
        "benches/NOTES.md",
    ] {
        let text = read(&project().join(document));
        for word in text.split(|c: char| c.is_whitespace() || "`()[]".contains(c)) {
            let word = word.trim_end_matches([',', ';', ':', '.']);
            let places = ["configs/", "docs/", "common/src/", "worker/", "coordinator/src/", "tests/", "scripts/", "deploy/", "examples/"];
            let is_path = places.iter().any(|place| word.starts_with(place) && word.len() > place.len());
            if is_path && !word.contains(['*', '{', '<']) && !word.contains("NAME") {
                assert!(project().join(word).exists(), "{document} names {word}, which does not exist");
            }
        }
        let folder = project().join(document).parent().map(Path::to_owned).unwrap_or_default();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|l| !l.contains("://")) {
            let (path, section) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { project().join(document) } else { folder.join(path) };
            assert!(target.exists(), "{document} links to {link}, which does not exist");
            let there = section.is_empty() || sections(&read(&target)).any(|name| name == section);
            assert!(there, "{document} links to {link}, and `{}` has no such section", target.display());
        }
        for target in text
            .split("`make ")
            .skip(1)
            .filter_map(|rest| rest.split(|c: char| !c.is_ascii_lowercase() && c != '-').next())
            .filter(|t| !t.is_empty())
        {
            assert!(makefile.contains(&format!("\n{target}:")), "{document} speaks of `make {target}`, which the Makefile lacks");
        }
    }
}

/// Under `pipefail` a command that ends before it has read all of its pipe fails the command
/// before it, but only where that has more to write than the pipe holds: on some machines.
#[test]
fn scripts_read_pipes_to_their_end() {
    let mut scripts = vec![project().join(".ci/run")];
    for folder in ["scripts", "benches", "coordinator/src/slurm", "deploy"] {
        collect_files(&project().join(folder), "sh", &mut scripts);
    }
    assert!(scripts.len() > 8, "only {} scripts were found", scripts.len());
    for script in scripts {
        let text = read(&script);
        if !text.contains("pipefail") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            for reader in line.split('|').skip(1).map(str::trim_start) {
                let stops = reader.starts_with("head")
                    || reader.starts_with("grep -q")
                    || reader.starts_with("grep -m")
                    || (reader.starts_with("awk") && reader.contains("exit }"));
                assert!(!stops, "{}:{}: `{reader}` does not read its pipe to the end", script.display(), number + 1);
            }
        }
    }
}

/// A dependency that no source names would be built for nothing.
#[test]
fn every_dependency_is_used() {
    for krate in ["common", "worker", "coordinator", "tests"] {
        let manifest = read(&project().join(krate).join("Cargo.toml"));
        let mut files = Vec::new();
        collect(&project().join(krate), &mut files);
        let sources: Vec<String> = files.iter().map(|path| read(path)).collect();
        let mut listed = 0;
        for section in
            manifest.split("\n[").filter(|section| section.starts_with("dependencies]") || section.starts_with("dev-dependencies]"))
        {
            for line in section.lines().skip(1) {
                let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
                // This one has another name in sources than in the registry.
                let word = if name == "kamadak-exif" { "exif".to_owned() } else { name.replace('-', "_") };
                if word.is_empty() {
                    continue;
                }
                listed += 1;
                let named = |text: &String| [format!("{word}::"), format!("use {word}")].iter().any(|use_of_it| text.contains(use_of_it));
                assert!(sources.iter().any(named), "{krate} does not use {name}: take it out of its Cargo.toml");
            }
        }
        assert!(listed > 5, "{krate} lists only {listed} dependencies");
    }
}
