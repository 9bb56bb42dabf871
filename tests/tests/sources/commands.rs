//! The documents' commands are those of the binaries.

use std::collections::BTreeSet;
use std::path::PathBuf;

use cluster_tests::{Running, project};

use super::tidy::read;

/// The commands of a document's shell blocks and code spans.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, block) in text.split("```").enumerate() {
        if number % 2 == 1 {
            let Some(block) = block.strip_prefix("sh\n") else { continue };
            let lines = block.replace("\\\n", " ");
            let whole = lines.lines().flat_map(|line| line.split(" #").next().unwrap_or_default().split(['|', ';', '&', '>']));
            found.extend(whole.map(str::to_owned));
        } else {
            // Code spans stand between single backticks. Those with alternatives are no commands.
            let spans = block.split('`').skip(1).step_by(2).filter(|span| !span.contains(['|', '{', '[', '>']));
            found.extend(spans.map(|span| span.replace('\n', " ")));
        }
    }
    found
}

/// The words of a command, of which those between single quotes are whole.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in command.chars() {
        match c {
            '\'' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => words.extend((!word.is_empty()).then(|| std::mem::take(&mut word))),
            c => word.push(c),
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}

/// The binary that a command starts, and its arguments.
fn parsed(command: &str) -> Option<(&'static str, Vec<String>)> {
    let mut words = words(command).into_iter().skip_while(|word| word.contains('=') || word == "sudo");
    let binary = match words.next()?.rsplit('/').next()? {
        "worker" | "ringleader-worker" => "worker",
        "coordinator" | "ringleader-coordinator" => "coordinator",
        _ => return None,
    };
    let args: Vec<String> = words.collect();
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
