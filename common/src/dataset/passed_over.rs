//! What a listing left out, by kind, with examples: nothing but hidden files is left out
//! without a word.

use std::fmt;
use std::path::Path;

use rkyv::{Archive, Deserialize, Serialize};

/// Examples that are kept of each kind.
const EXAMPLES: usize = 3;

/// Different endings that are told apart; later ones are counted together.
const ENDINGS: usize = 12;

/// What follows the last dot is an ending if it has no more letters than this.
const ENDING_LETTERS: usize = 12;

/// Why a file is no sample.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Archive, Serialize, Deserialize)]
pub(super) enum Reason {
    /// Neither its name nor its first bytes are those of a picture.
    Ending(String),
    /// The same, of a file without an ending.
    NoEnding,
    /// The same, after [`ENDINGS`] others.
    OtherEnding,
    /// It has no bytes.
    Empty,
    /// It points to a file that is not there.
    BrokenLink,
    /// Its first bytes could not be read.
    Unreadable,
    /// A pipe, a socket or a device.
    NoFile,
    /// A row of a table, for this reason.
    Row(String),
    /// A picture beside the class folders.
    NoClass,
    /// A member of a tar, for this reason.
    Member(String),
}

impl Reason {
    /// Of a file that is no picture.
    pub(super) fn of_ending(path: &Path) -> Self {
        match path.extension().map(|ending| ending.to_string_lossy().to_lowercase()) {
            Some(ending) if (1..=ENDING_LETTERS).contains(&ending.chars().count()) => Self::Ending(ending),
            _ => Self::NoEnding,
        }
    }

    /// Whether the file may become a sample without its folder noticing.
    fn may_mend(&self) -> bool {
        matches!(self, Self::Empty | Self::BrokenLink | Self::Unreadable)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
struct Kind {
    reason: Reason,
    files: u64,
    /// The first ones, relative to the dataset's root.
    examples: Vec<String>,
}

/// The files and folders of a dataset that are no samples. Its text is one line, such as
/// "3 files were passed over: 2 .txt (train/cat/a.txt, train/cat/b.txt), 1 empty
/// (train/dog/c.jpg)"; it is empty where nothing was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct PassedOver {
    kinds: Vec<Kind>,
    /// A sentence for each folder.
    folders: Vec<String>,
}

impl PassedOver {
    pub(super) fn none() -> &'static Self {
        static NONE: PassedOver = PassedOver { kinds: Vec::new(), folders: Vec::new() };
        &NONE
    }

    /// Says in the log what was passed over, at the start of a run.
    pub fn warn(&self) {
        if !self.is_empty() {
            tracing::warn!("{self}");
        }
    }

    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty() && self.folders.is_empty()
    }

    /// How many files.
    pub fn files(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.files).sum()
    }

    pub(super) fn add(&mut self, reason: Reason, path: &Path) {
        self.add_all(Kind { reason, files: 1, examples: vec![path.display().to_string()] });
    }

    /// Adds `count` members of tars, of which some are named.
    pub(super) fn add_members(&mut self, reason: &str, count: u64, examples: &[String]) {
        self.add_all(Kind { reason: Reason::Member(reason.to_owned()), files: count, examples: examples.to_vec() });
    }

    /// The same of rows.
    #[cfg(feature = "parquet")]
    pub(super) fn add_rows(&mut self, reason: &str, count: u64, examples: &[String]) {
        self.add_all(Kind { reason: Reason::Row(reason.to_owned()), files: count, examples: examples.to_vec() });
    }

    pub(super) fn add_folder(&mut self, sentence: String) {
        self.folders.push(sentence);
    }

    pub(super) fn merge(&mut self, other: Self) {
        other.kinds.into_iter().for_each(|kind| self.add_all(kind));
        self.folders.extend(other.folders);
    }

    fn add_all(&mut self, mut more: Kind) {
        let endings = self.kinds.iter().filter(|kind| matches!(kind.reason, Reason::Ending(_))).count();
        let known = self.kinds.iter().any(|kind| kind.reason == more.reason);
        if !known && endings >= ENDINGS && matches!(more.reason, Reason::Ending(_)) {
            more.reason = Reason::OtherEnding;
        }
        match self.kinds.iter_mut().find(|kind| kind.reason == more.reason) {
            Some(kind) => {
                kind.files += more.files;
                kind.examples.extend(more.examples);
                kind.examples.truncate(EXAMPLES);
            }
            None => self.kinds.push(more),
        }
    }

    /// Whether a file among them may become a sample without a change of its folder.
    pub(super) fn may_mend(&self) -> bool {
        self.kinds.iter().any(|kind| kind.reason.may_mend())
    }
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.kinds.is_empty() {
            let mut kinds: Vec<&Kind> = self.kinds.iter().collect();
            kinds.sort_by_key(|kind| (std::cmp::Reverse(kind.files), &kind.reason));
            let kinds: Vec<String> = kinds.into_iter().map(Kind::to_string).collect();
            let what = if self.kinds.iter().all(|kind| matches!(kind.reason, Reason::Row(_))) { "row" } else { "file" };
            let were = if self.files() == 1 { " was" } else { "s were" };
            parts.push(format!("{} {what}{were} passed over: {}", self.files(), kinds.join(", ")));
        }
        parts.extend(self.folders.iter().cloned());
        f.write_str(&parts.join("; "))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.files;
        let plural = |one: &str, more: &str| if n == 1 { one.to_owned() } else { more.to_owned() };
        let what = match &self.reason {
            Reason::Ending(ending) => format!(".{ending}"),
            Reason::NoEnding => "without an ending".to_owned(),
            Reason::OtherEnding => "of other endings".to_owned(),
            Reason::Empty => "empty".to_owned(),
            Reason::BrokenLink => plural("broken link", "broken links"),
            Reason::Unreadable => "unreadable".to_owned(),
            Reason::NoFile => plural("pipe or device", "pipes or devices"),
            Reason::Member(reason) | Reason::Row(reason) => reason.clone(),
            Reason::NoClass => plural("picture in no class folder", "pictures in no class folder"),
        };
        let more = if n > self.examples.len() as u64 { ", ..." } else { "" };
        write!(f, "{n} {what} ({}{more})", self.examples.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_stand_in_one_line_the_most_frequent_first() {
        let mut passed = PassedOver::default();
        assert!(passed.is_empty() && passed.to_string().is_empty());
        passed.add(Reason::BrokenLink, Path::new("train/cat/gone.jpg"));
        assert_eq!(passed.to_string(), "1 file was passed over: 1 broken link (train/cat/gone.jpg)");
        for name in ["a.txt", "b.TXT", "c.Txt", "d.txt"] {
            passed.add(Reason::of_ending(Path::new(name)), Path::new(name));
        }
        let expected = "5 files were passed over: 4 .txt (a.txt, b.TXT, c.Txt, ...), 1 broken link (train/cat/gone.jpg)";
        assert_eq!(passed.to_string(), expected);
        passed.add_folder("test/ is not used".to_owned());
        assert_eq!(passed.to_string(), format!("{expected}; test/ is not used"));
        let mut twice = passed.clone();
        twice.merge(passed);
        assert_eq!((twice.files(), twice.to_string().matches("test/").count()), (10, 2));
    }

    #[test]
    fn what_is_no_ending_is_none_and_many_endings_are_counted_together() {
        for name in ["README", "a.", "mr. smith and his dog"] {
            assert_eq!(Reason::of_ending(Path::new(name)), Reason::NoEnding, "{name}");
        }
        let mut passed = PassedOver::default();
        (0..100_000).for_each(|n| passed.add(Reason::of_ending(Path::new(&format!("frame.{n}"))), Path::new("x")));
        assert_eq!((passed.files(), passed.kinds.len()), (100_000, ENDINGS + 1));
        assert!(passed.to_string().contains("99988 of other endings"), "{passed}");
    }
}
