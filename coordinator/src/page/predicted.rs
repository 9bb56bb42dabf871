//! What the newest evaluation says of a few pictures, as the page shows it. Pure.

use axum::body::Bytes;
use common::digest::Digest;
use common::predictions::Predictions;
use serde::Serialize;

/// Pictures of one evaluation, and what the model says of them.
#[derive(Debug, Serialize)]
pub(super) struct Predicted {
    /// The committed steps behind it.
    step: u64,
    pictures: Vec<Picture>,
}

#[derive(Debug, Serialize)]
struct Picture {
    /// By which a reader asks for it. It follows from the content, so that a browser asks
    /// once for a picture that every evaluation shows.
    picture: String,
    class: String,
    right: bool,
    /// The likeliest classes, best first.
    guesses: Vec<Guess>,
    #[serde(skip)]
    png: Bytes,
}

#[derive(Debug, Serialize)]
struct Guess {
    class: String,
    probability: f32,
}

impl Predicted {
    /// Of a run with these classes. The error says what is wrong with the predictions.
    pub(super) fn new(predictions: Predictions, classes: &[String]) -> Result<Self, String> {
        predictions.check(classes.len())?;
        let class = |label: u32| classes.get(label as usize).cloned().unwrap_or_default();
        let pictures = predictions.pictures.into_iter().map(|picture| Picture {
            picture: Digest::of(&picture.png).to_string().chars().take(16).collect(),
            class: class(picture.label),
            right: picture.is_right(),
            guesses: picture.guesses.iter().map(|guess| Guess { class: class(guess.class), probability: guess.probability }).collect(),
            png: picture.png.into(),
        });
        Ok(Self { step: predictions.step, pictures: pictures.collect() })
    }

    /// The picture of this name.
    pub(super) fn png(&self, name: &str) -> Option<Bytes> {
        self.pictures.iter().find(|picture| picture.picture == name).map(|picture| picture.png.clone())
    }
}
