//! The pictures inside tar files: where each lies.

use rkyv::{Archive, Deserialize, Serialize};

use super::kept_index::{Index, LeftOut};

/// One picture: 24 bytes, since there may be millions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) bytes: u32,
    /// The number of its tar in the set.
    pub(super) tar: u32,
    pub(super) label: u32,
    /// Where its name ends among the names.
    name_end: u32,
}

/// The pictures of a set of tars, in the order in which they lie there.
#[derive(Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) struct TarIndex {
    pub(super) places: Vec<Place>,
    /// The members' names, end to end.
    names: Vec<u8>,
    /// What the labels number, where the tars say that.
    pub(super) groups: Vec<String>,
    /// Samples and files without use.
    pub(super) left_out: LeftOut,
}

impl TarIndex {
    /// Adds a picture. The error says what cannot be indexed.
    pub(super) fn push(&mut self, tar: usize, offset: u64, bytes: u64, label: u32, name: &[u8]) -> Result<(), String> {
        self.names.extend_from_slice(name);
        let too_much = |_| format!("holds `{}`, which is too large for a picture, or too many of them", String::from_utf8_lossy(name));
        let bytes = u32::try_from(bytes).map_err(too_much)?;
        let (tar, name_end) = (u32::try_from(tar).map_err(too_much)?, u32::try_from(self.names.len()).map_err(too_much)?);
        u32::try_from(self.places.len()).map_err(too_much)?;
        self.places.push(Place { offset, bytes, tar, label, name_end });
        Ok(())
    }

    /// Adds the pictures of one tar, which were indexed by themselves. The error says what
    /// cannot be indexed.
    pub(super) fn append(&mut self, tar: usize, other: &Self) -> Result<(), String> {
        for (at, place) in other.places.iter().enumerate() {
            self.push(tar, place.offset, place.bytes.into(), place.label, other.name(at))?;
        }
        self.left_out.append(&other.left_out);
        Ok(())
    }

    pub(super) fn pass_over(&mut self, reason: &str, name: &[u8]) {
        self.left_out.add(reason, || String::from_utf8_lossy(name).into_owned());
    }

    pub(super) fn name(&self, at: usize) -> &[u8] {
        let start = at.checked_sub(1).map_or(0, |before| self.places[before].name_end);
        &self.names[start as usize..self.places[at].name_end as usize]
    }
}

impl Index for TarIndex {
    const KEPT: (&str, u32) = ("tars", 3);

    fn is_sound(&self, tars: usize) -> bool {
        let mut before = 0;
        self.places.iter().all(|place| {
            let ordered = before <= place.name_end;
            before = place.name_end;
            ordered && (place.tar as usize) < tars && place.offset.checked_add(place.bytes.into()).is_some()
        }) && before as usize <= self.names.len()
    }
}
