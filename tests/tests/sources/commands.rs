//! The documents' commands are those of the binaries.

use std::collections::BTreeSet;
use std::path::PathBuf;

use cluster_tests::{Running, project};

use super::markdown::{Code, code, program};
use super::tidy::read;

/// The commands of a document's shell blocks and code spans.
fn commands(text: &str) -> Vec<String> {
    let of = |code: Code| match code.language.as_deref() {
        Some("sh") => {
            let lines = code.commands().into_iter().map(|(_, line)| line);
            lines.flat_map(|line| line.split(['|', ';', '&', '>']).map(str::to_owned).collect::<Vec<_>>()).collect()
        }
        // Those with alternatives are no commands.
        None if !code.text.contains(['|', '{', '[', '>']) => vec![code.text],
        _ => Vec::new(),
    };
    code(text).into_iter().flat_map(of).collect()
}

/// The binary that a command starts, and its arguments.
fn parsed(command: &str) -> Option<(&'static str, Vec<String>)> {
    let (name, args) = program(command)?;
    let binary = match name.as_str() {
        "worker" | "ringleader-worker" => "worker",
        "coordinator" | "ringleader-coordinator" => "coordinator",
        _ => return None,
    };
    // `worker` alone is the name of a program, or of a crate.
    (!args.is_empty()).then_some((binary, args))
}

/// What is wrong with a command. Arguments are read from left to right, and an unknown one is
/// refused before the last.
fn refusal((binary, args): &(&'static str, Vec<String>)) -> Option<String> {
    let all: Vec<&str> = args.iter().map(String::as_str).chain(["--help"]).collect();
    let done = Running::start(binary, &all).wait();
    (!done.status.success()).then(|| format!("{binary} {}: {}", args.join(" "), done.stderr.lines().next().unwrap_or_default()))
}

#[test]
fn documents_speak_of_commands_that_there_are() {
    let mut documents = vec![project().join("README.md"), project().join("CONTRIBUTING.md"), project().join("benches/README.md")];
    let docs = std::fs::read_dir(project().join("docs")).unwrap_or_else(|e| panic!("{e}"));
    documents.extend(docs.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "md")));
    let of = |document: &PathBuf| commands(&read(document)).iter().filter_map(|command| parsed(command)).collect::<Vec<_>>();
    let all: Vec<_> = documents.iter().flat_map(of).collect::<BTreeSet<_>>().into_iter().collect();
    assert!(all.len() > 60, "only {} commands were found", all.len());
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let parts: Vec<_> =
            all.chunks(all.len().div_ceil(4)).map(|part| scope.spawn(|| part.iter().filter_map(refusal).collect::<Vec<_>>())).collect();
        parts.into_iter().flat_map(|part| part.join().unwrap_or_else(|_| vec!["a thread has panicked".to_owned()])).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
