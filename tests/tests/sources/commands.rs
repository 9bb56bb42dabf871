//! The documents' commands are those of the binaries.

use cluster_tests::{Running, project};

use super::tidy::read;

/// The commands of a document's shell blocks and code spans.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, block) in text.split("```").enumerate() {
        if number % 2 == 1 {
            let Some(block) = block.strip_prefix("sh\n") else { continue };
            let lines = block.replace("\\\n", " ");
            found.extend(lines.lines().flat_map(|line| line.split(" #").next().unwrap_or_default().split(['|', ';'])).map(str::to_owned));
        } else {
            // Code spans stand between single backticks. Those with alternatives are no commands.
            let spans = block.split('`').skip(1).step_by(2).filter(|span| !span.contains(['|', '{', '[']));
            found.extend(spans.map(|span| span.replace('\n', " ")));
        }
    }
    found
}

/// The binary that a command starts, and its arguments.
fn parsed(command: &str) -> Option<(&'static str, Vec<String>)> {
    let mut words = command.split_whitespace().skip_while(|word| word.contains('=') || *word == "sudo");
    let binary = match words.next()?.rsplit('/').next()? {
        "worker" | "ringleader-worker" => "worker",
        "coordinator" | "ringleader-coordinator" => "coordinator",
        _ => return None,
    };
    let args: Vec<String> = words.map(|word| word.trim_matches(['\'', '"']).to_owned()).collect();
    // `worker` alone is the name of a program, or of a crate.
    (!args.is_empty()).then_some((binary, args))
}

#[test]
fn documents_speak_of_commands_that_there_are() {
    let mut documents = vec![project().join("README.md"), project().join("CONTRIBUTING.md"), project().join("benches/README.md")];
    let docs = std::fs::read_dir(project().join("docs")).unwrap_or_else(|e| panic!("{e}"));
    documents.extend(docs.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "md")));
    let (mut seen, mut wrong) = (0, Vec::new());
    for document in documents {
        for (binary, mut args) in commands(&read(&document)).iter().filter_map(|command| parsed(command)) {
            // Arguments are read from left to right, and an unknown one is refused before this.
            args.push("--help".to_owned());
            let done = Running::start(binary, &args.iter().map(String::as_str).collect::<Vec<_>>()).wait();
            if !done.status.success() {
                wrong.push(format!(
                    "{}: {binary} {}: {}",
                    document.display(),
                    args.join(" "),
                    done.stderr.lines().next().unwrap_or_default()
                ));
            }
            seen += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 60, "only {seen} commands were found");
}
