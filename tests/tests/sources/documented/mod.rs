//! What the documents say to paste works: each command of README.md and docs/*.md is run, in
//! an empty folder with small data, in the order of its document.

mod inputs;
mod shell;
mod tables;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use cluster_tests::{binary, project};
use tempfile::TempDir;

use crate::markdown::{code, program, words};
use crate::tidy::{collect, read};
use shell::Shell;
use tables::{CHANGED, ELSEWHERE, Elsewhere, MADE};

/// Programs whose names begin a command in a text. A block of the shell has commands alone.
const PROGRAMS: [&str; 31] = [
    "worker",
    "coordinator",
    "ringleader-worker",
    "ringleader-coordinator",
    "own-model",
    "chaos",
    "make",
    "cargo",
    "rustup",
    "sh",
    "bash",
    "git",
    "python3",
    "pip",
    "apt",
    "apt-get",
    "dpkg",
    "docker",
    "kubectl",
    "ssh",
    "scp",
    "rsync",
    "sbatch",
    "srun",
    "curl",
    "wget",
    "aws",
    "man",
    "tensorboard",
    "mlflow",
    "systemctl",
];

/// Languages of blocks that are not for a shell; none is output, or a list of files.
const OTHER_LANGUAGES: [&str; 6] = ["", "toml", "yaml", "rust", "python", "json"];

struct Statement {
    line: usize,
    command: String,
    /// Whether it stands in a sentence or a table.
    in_text: bool,
    /// What the document says that it prints.
    prints: Vec<String>,
}

/// The commands of a document, or what keeps them from being found.
fn statements(text: &str) -> Result<Vec<Statement>, String> {
    let mut found: Vec<Statement> = Vec::new();
    let begins_command = |line: &str| program(line).is_some_and(|(name, words)| PROGRAMS.contains(&name.as_str()) && !words.is_empty());
    for code in code(text) {
        match code.language.as_deref() {
            // What a document says twice is run once.
            None if begins_command(&code.text) && !found.iter().any(|known| known.command == code.text) => {
                found.push(Statement { line: code.line, command: code.text, in_text: true, prints: Vec::new() });
            }
            None => {}
            Some("sh") => {
                let of = |(line, command)| Statement { line, command, in_text: false, prints: Vec::new() };
                found.extend(code.commands().into_iter().map(of));
            }
            Some("") if code.text.lines().next().is_some_and(|line| line.starts_with("$ ") || begins_command(line)) => {
                return Err(format!("{}: a block of commands: it begins with ```sh", code.line));
            }
            Some(language) if !OTHER_LANGUAGES.contains(&language) => {
                return Err(format!("{}: a block of `{language}`: commands begin with ```sh", code.line));
            }
            Some("") if code.follows_a_block => {
                if let Some(last) = found.last_mut().filter(|last| !last.in_text) {
                    last.prints = code.text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect();
                }
            }
            Some(_) => {}
        }
    }
    Ok(found)
}

/// What came of a document's commands.
#[derive(Default)]
struct Outcome {
    run: usize,
    faults: Vec<String>,
    /// The rows of the tables that were needed, by their first words.
    rows: BTreeSet<&'static str>,
}

/// Whether a command begins with the words of a row.
fn begins_with(command: &str, words: &str) -> bool {
    command.strip_prefix(words).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

/// A command without the folder of the binaries.
fn bare(command: &str) -> &str {
    command.strip_prefix("target/release/").unwrap_or(command)
}

/// A document that is followed from its first line to its last.
struct Reader<'a> {
    document: &'a str,
    folder: TempDir,
    store: &'a Path,
    outcome: Outcome,
}

impl Reader<'_> {
    /// Whether a command is run elsewhere. If so, what it would have fetched is put in place.
    fn is_elsewhere(&mut self, Statement { line, command, .. }: &Statement) -> bool {
        let Some((words, elsewhere)) = ELSEWHERE.iter().find(|(words, _)| begins_with(bare(command), words)) else { return false };
        self.outcome.rows.insert(words);
        match elsewhere {
            Elsewhere::Fetched(..) => {
                let name = command.rsplit(' ').next().unwrap_or_default();
                inputs::digits(self.store, &self.folder.path().join("data").join(name));
            }
            Elsewhere::Test => {
                let fault = missing_test(command).map(|fault| format!("{}:{line}: `{command}` {fault}", self.document));
                self.outcome.faults.extend(fault);
            }
            Elsewhere::Like(..) | Elsewhere::Not(_) => {}
        }
        true
    }

    /// A command as it is run here.
    fn changed(&mut self, command: &str) -> String {
        let mut changed = command.to_owned();
        for row in CHANGED.iter().filter(|row| row.document.is_empty() || row.document == self.document) {
            if changed.contains(row.part) {
                self.outcome.rows.insert(row.part);
                changed = changed.replace(row.part, row.is);
            }
        }
        changed
    }

    fn run(&mut self, statement: &Statement, shell: &mut Shell) {
        let Statement { line, command, in_text, prints } = statement;
        let as_run = self.changed(command);
        let start = Instant::now();
        let ended = shell.run(&as_run);
        println!("{:5.2} s  {}:{line}: {as_run}", start.elapsed().as_secs_f64(), self.document);
        let fault = match ended {
            // A sentence may name a command without saying all that it takes.
            Err(fault) if *in_text && fault.contains("required arguments were not provided") => None,
            Err(fault) => Some(fault),
            Ok(printed) => {
                let missing = prints.iter().find(|line| !printed.contains(line.as_str()));
                missing.map(|line| format!("does not print `{line}`, as the document says, but\n{printed}"))
            }
        };
        let mut faults: Vec<String> = fault.into_iter().collect();
        for (_, words, files) in MADE.iter().filter(|(of, words, _)| *of == self.document && bare(command) == *words) {
            self.outcome.rows.insert(words);
            let missing = files.iter().filter(|file| !self.folder.path().join(file).exists());
            faults.extend(missing.map(|file| format!("has not made {file}")));
        }
        self.outcome.run += 1;
        self.outcome.faults.extend(faults.iter().map(|fault| format!("{}:{line}: `{as_run}` {fault}", self.document)));
    }
}

/// Follows a document, in a folder of its own.
fn follow(document: &str, text: &str, store: &Path) -> Outcome {
    let statements = match statements(text) {
        Ok(statements) => statements,
        Err(fault) => return Outcome { faults: vec![format!("{document}:{fault}")], ..Outcome::default() },
    };
    let folder = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
    inputs::folder(document, folder.path(), store);
    let system = std::env::var("PATH").unwrap_or_default();
    // These two say themselves where the binaries are; the others are read after them.
    let first = ["README.md", "docs/course.md"].contains(&document);
    let path = if first { system } else { format!("{}:{system}", folder.path().join("target/release").display()) };
    let names = |statement: &&Statement| !statement.in_text && ["alias ", "export "].iter().any(|word| statement.command.starts_with(word));
    // A sentence may stand before the block that names what it speaks of.
    let (mut shell, mut of_text) = (Shell::new(folder.path(), path.clone()), Shell::new(folder.path(), path));
    statements.iter().filter(names).for_each(|statement| of_text.remember(&statement.command));
    let mut reader = Reader { document, folder, store, outcome: Outcome::default() };
    for statement in &statements {
        if !reader.is_elsewhere(statement) {
            reader.run(statement, if statement.in_text { &mut of_text } else { &mut shell });
        }
        if names(&statement) {
            shell.remember(&statement.command);
        }
    }
    let faults = [shell, of_text].into_iter().filter_map(Shell::end).map(|fault| format!("{document}: {fault}"));
    reader.outcome.faults.extend(faults);
    reader.outcome
}

/// What is wrong with a command that names tests.
fn missing_test(command: &str) -> Option<String> {
    let words = words(command);
    let mut after = words.iter().skip_while(|word| *word != "--test").skip(1);
    let Some(target) = after.next() else { return Some("names no test target".to_owned()) };
    let folder = project().join("tests/tests");
    let mut files = vec![folder.join(format!("{target}.rs"))];
    if folder.join(target).is_dir() {
        collect(&folder.join(target), &mut files);
    }
    files.retain(|file| file.exists());
    let filter = after.next().filter(|word| *word != "--");
    let names = |file: &PathBuf| {
        filter.is_none_or(|filter| file.to_string_lossy().contains(filter.as_str()) || read(file).contains(filter.as_str()))
    };
    (!files.iter().any(names)).then(|| "names a test that there is not".to_owned())
}

#[test]
fn what_the_documents_say_to_paste_works() {
    let mut documents = vec!["README.md".to_owned()];
    let docs = std::fs::read_dir(project().join("docs")).unwrap_or_else(|e| panic!("{e}"));
    let names = docs.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    documents.extend(names.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}")));
    let store = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
    inputs::make(store.path());
    // As many at a time as there are cores, those with the most commands first.
    let with_text = |document: String| {
        let text = read(&project().join(&document));
        (document, text)
    };
    let mut waiting: Vec<(String, String)> = documents.into_iter().map(with_text).collect();
    waiting.sort_by_key(|(_, text)| statements(text).map_or(0, |found| found.len()));
    let waiting = Mutex::new(waiting);
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let all = || std::iter::from_fn(next).map(|(document, text)| follow(&document, &text, store.path())).collect::<Vec<Outcome>>();
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..std::thread::available_parallelism().map_or(2, usize::from).min(4)).map(|_| scope.spawn(all)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    });
    let run: usize = outcomes.iter().map(|outcome| outcome.run).sum();
    let faults: Vec<&String> = outcomes.iter().flat_map(|outcome| &outcome.faults).collect();
    assert!(faults.is_empty(), "{} of {run}:\n{}", faults.len(), faults.iter().map(|f| f.as_str()).collect::<Vec<_>>().join("\n"));
    assert!(run > 80, "only {run} commands were run");
    let rows = ELSEWHERE.iter().map(|row| row.0).chain(CHANGED.iter().map(|row| row.part)).chain(MADE.iter().map(|row| row.1));
    let idle: Vec<&str> = rows.filter(|row| !outcomes.iter().any(|outcome| outcome.rows.contains(row))).collect();
    assert!(idle.is_empty(), "no document has what these rows of the tables are for: {idle:?}");
}

/// A command that is not run here is run by the test that its row names.
#[test]
fn what_is_run_elsewhere_is_there() {
    for (words, elsewhere) in ELSEWHERE {
        match elsewhere {
            Elsewhere::Like(file, like) | Elsewhere::Fetched(file, like) => {
                assert!(read(&project().join(file)).contains(like), "`{words}`: {file} has no `{like}`");
            }
            Elsewhere::Not(why) => assert!(!why.is_empty(), "`{words}`: why not?"),
            Elsewhere::Test => {}
        }
    }
    assert!(CHANGED.iter().all(|row| !row.why.is_empty() && row.part != row.is));
    assert!(missing_test("cargo test --release -p cluster-tests --test cluster no_such_test").is_some());
}

/// The faults of a document that has this text.
fn faults(text: &str) -> Vec<String> {
    let store = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
    follow("docs/new.md", text, store.path()).faults
}

#[test]
fn what_a_document_promises_in_vain_is_found() {
    assert_eq!(
        faults("`worker --version` and `worker join`, with `train.lr`\n\n```sh\nalias w=worker\nworker summary --megapixels 12\n```\n"),
        [""; 0]
    );
    for (text, words) in [
        ("\n```sh\nworker train configs/nothing.toml\n```\n", "docs/new.md:3: `worker train configs/nothing.toml` ends with"),
        ("See `worker eval runs/nothing`.\n", "docs/new.md:1: `worker eval runs/nothing` ends with"),
        ("```sh\nterraform apply\n```\n", "is in none of the tables"),
        ("`docker run ringleader`\n", "is in none of the tables"),
        ("```bash\nworker doctor\n```\n", "commands begin with ```sh"),
        ("```\nworker doctor\n```\n", "it begins with ```sh"),
        ("```sh\nworker summary --megapixels 12\n```\n\n```\nA picture of 13 megapixels\n```\n", "does not print `A picture of 13"),
        ("```sh\nworker join 192.0.2.7:7474 --token rl1-...\n```\n", "no coordinator of this document"),
        ("```sh\ncoordinator serve configs/mlp-xor.toml\n```\n", "still waits for workers"),
        ("`cargo test --release -p cluster-tests --test nothing`\n", "names a test that there is not"),
    ] {
        let faults = faults(text);
        assert!(faults.len() == 1 && faults[0].contains(words), "{text}: {faults:?}");
    }
    assert!(binary("worker").exists());
}
