//! The names that splits usually have.

use super::source::Split;

/// A split by its usual name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    Train,
    Val,
    /// Validates where nothing is named as validation.
    Test,
}

impl Named {
    /// What a whole word names, in any case: `train`, `Validation`.
    pub(super) fn of(word: &str) -> Option<Self> {
        match word.to_ascii_lowercase().as_str() {
            "train" | "training" => Some(Self::Train),
            "val" | "valid" | "validation" => Some(Self::Val),
            "test" => Some(Self::Test),
            _ => None,
        }
    }

    /// What a file's name says among other words: `imagenet-train-0001.tar`.
    pub(super) fn within(name: &str) -> Option<Self> {
        name.split(|c: char| !c.is_alphabetic()).find_map(Self::of)
    }

    /// For messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Train => "training",
            Self::Val => "validation",
            Self::Test => "test",
        }
    }

    /// The split for which it is used; none for a test set beside a validation set.
    pub(super) fn split(self, val_exists: bool) -> Option<Split> {
        match self {
            Self::Train => Some(Split::Train),
            Self::Val => Some(Split::Val),
            Self::Test => (!val_exists).then_some(Split::Val),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_have_their_usual_names_in_any_case() {
        for (word, split) in [
            ("train", Some(Named::Train)),
            ("Training", Some(Named::Train)),
            ("VAL", Some(Named::Val)),
            ("valid", Some(Named::Val)),
            ("Validation", Some(Named::Val)),
            ("test", Some(Named::Test)),
            ("dev", None),
            ("", None),
        ] {
            assert_eq!(Named::of(word), split, "{word}");
        }
        assert_eq!(Named::within("imagenet1k-validation-00.tar"), Some(Named::Val));
        assert_eq!(Named::within("train_000.tar"), Some(Named::Train));
        assert_eq!(Named::within("trainset-000.tar"), None);
        assert_eq!((Named::Test.split(false), Named::Test.split(true)), (Some(Split::Val), None));
    }
}
