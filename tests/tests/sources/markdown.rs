//! The code in a Markdown document: its fenced blocks, and its spans between backticks.

/// What stands between backticks.
pub(crate) struct Code {
    /// The line of the document in which it begins, from 1.
    pub line: usize,
    /// The word after the three backticks of a block; `None` of a span.
    pub language: Option<String>,
    /// Of a span in one line.
    pub text: String,
    /// Whether nothing but white space stands between this block and the one before it.
    pub follows_a_block: bool,
}

/// All code of a document, in its order.
pub(crate) fn code(document: &str) -> Vec<Code> {
    let mut found = Vec::new();
    let mut line = 1;
    let mut follows_a_block = false;
    for (number, part) in document.split("```").enumerate() {
        if number % 2 == 1 {
            let (language, text) = part.split_once('\n').unwrap_or((part, ""));
            found.push(Code { line: line + 1, language: Some(language.trim().to_owned()), text: text.to_owned(), follows_a_block });
        } else {
            let mut at = line;
            for (place, text) in part.split('`').enumerate() {
                if place % 2 == 1 {
                    // A bar would end the cell of a table.
                    let text = text.split_whitespace().collect::<Vec<_>>().join(" ").replace("\\|", "|");
                    found.push(Code { line: at, language: None, text, follows_a_block: false });
                }
                at += text.matches('\n').count();
            }
            follows_a_block = part.trim().is_empty();
        }
        line += part.matches('\n').count();
    }
    found
}

impl Code {
    /// The commands of a shell block, with the line of each: one goes on behind a backslash or a
    /// bar at the end of a line. Comments are left out.
    pub(crate) fn commands(&self) -> Vec<(usize, String)> {
        let mut found: Vec<(usize, String)> = Vec::new();
        let mut goes_on = false;
        for (number, line) in self.text.lines().enumerate() {
            let line = line.split(" #").next().unwrap_or_default().trim();
            let (text, cut) = line.strip_suffix('\\').map_or((line, false), |line| (line.trim_end(), true));
            match found.last_mut() {
                Some((_, command)) if goes_on => *command = format!("{command} {text}"),
                _ if text.is_empty() || text.starts_with('#') => {}
                _ => found.push((self.line + number, text.to_owned())),
            }
            goes_on = cut || text.ends_with('|');
        }
        found
    }
}

/// The words of a command, of which those between single quotes are whole.
pub(crate) fn words(command: &str) -> Vec<String> {
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

/// The program that a command starts, without its folder, and its arguments.
pub(crate) fn program(command: &str) -> Option<(String, Vec<String>)> {
    let mut words = words(command).into_iter().skip_while(|word| word.contains('=') || word == "sudo");
    let name = words.next()?.rsplit('/').next()?.to_owned();
    Some((name, words.collect()))
}

#[test]
fn commands_are_found_with_their_lines() {
    let text = "one `a b`,\ntwo `c\nd \\| e`\n\n```sh\nf \\\n    g    # h\n# i\nj |\n    k\n```\n\n```\nl\n```\n";
    let code = code(text);
    let spans: Vec<_> = code.iter().filter(|code| code.language.is_none()).map(|code| (code.line, code.text.as_str())).collect();
    assert_eq!(spans, [(1, "a b"), (2, "c d | e")]);
    assert_eq!(code[2].commands(), [(6, "f g".to_owned()), (9, "j | k".to_owned())]);
    assert_eq!((code[3].line, code[3].follows_a_block, code[2].follows_a_block), (14, true, false));
}
