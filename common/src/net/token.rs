//! The join token: one word that a person copies to another machine. It pins the
//! run's certificate authority and carries the secret that admits a worker.

use std::fmt;
use std::str::FromStr;

const PREFIX: &str = "rl1-";
const ALPHABET: &str = "abcdefghijklmnopqrstuvwxyz234567";
const FINGERPRINT: usize = 32;
/// Bytes of a token's secret: too many to guess.
pub const SECRET: usize = 16;
const CHECKSUM: usize = 4;
const BYTES: usize = FINGERPRINT + SECRET + CHECKSUM;
const LETTERS: usize = (BYTES * 8).div_ceil(5);

/// What a worker needs to join a run: the BLAKE3 fingerprint of the authority's
/// certificate and the run's secret. Printed as `rl1-` and 84 letters and digits
/// (RFC 4648 base32 in lower case, so no 0, 1, 8 or 9), ending in a checksum.
/// [`fmt::Debug`] hides the secret; [`fmt::Display`] is the token itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub fingerprint: [u8; FINGERPRINT],
    pub secret: [u8; SECRET],
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("a token starts with `rl1-`: copy the whole word that the coordinator printed after `--token`")]
    Prefix,
    #[error("the token is cut off: it has {got} characters, a whole one has {}", PREFIX.len() + LETTERS)]
    CutOff { got: usize },
    #[error("the token is too long: it has {got} characters, a whole one has {}", PREFIX.len() + LETTERS)]
    TooLong { got: usize },
    #[error("the token holds `{character}` at place {place}, which no token does: copy it again")]
    Character { character: char, place: usize },
    #[error("the token has a typing mistake (its checksum is wrong): copy it again")]
    Checksum,
}

fn base32() -> data_encoding::Encoding {
    let mut specification = data_encoding::Specification::new();
    specification.symbols.push_str(ALPHABET);
    specification.encoding().unwrap_or_else(|e| unreachable!("the alphabet has 32 letters: {e}"))
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM] {
    let hash = blake3::derive_key("ringleader 1 token checksum", body);
    [hash[0], hash[1], hash[2], hash[3]]
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [self.fingerprint.as_slice(), self.secret.as_slice()].concat();
        bytes.extend(checksum(&bytes));
        write!(f, "{PREFIX}{}", base32().encode(&bytes))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fingerprint = blake3::Hash::from_bytes(self.fingerprint).to_hex();
        f.debug_struct("Token").field("fingerprint", &fingerprint.as_str()).field("secret", &"(hidden)").finish()
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let Some(letters) = text.strip_prefix(PREFIX) else {
            return Err(if PREFIX.starts_with(text) && !text.is_empty() {
                TokenError::CutOff { got: text.len() }
            } else {
                TokenError::Prefix
            });
        };
        let letters = letters.to_ascii_lowercase();
        if let Some((i, character)) = letters.chars().enumerate().find(|(_, c)| !ALPHABET.contains(*c)) {
            return Err(TokenError::Character { character, place: PREFIX.len() + i + 1 });
        }
        match letters.len() {
            n if n < LETTERS => return Err(TokenError::CutOff { got: text.len() }),
            n if n > LETTERS => return Err(TokenError::TooLong { got: text.len() }),
            _ => {}
        }
        // The last letter has bits to spare: they must be zero, so that a token has one spelling.
        let bytes = base32().decode(letters.as_bytes()).map_err(|_| TokenError::Checksum)?;
        let (body, sum) = bytes.split_at(FINGERPRINT + SECRET);
        if *sum != checksum(body) {
            return Err(TokenError::Checksum);
        }
        let (mut fingerprint, mut secret) = ([0; FINGERPRINT], [0; SECRET]);
        fingerprint.copy_from_slice(&body[..FINGERPRINT]);
        secret.copy_from_slice(&body[FINGERPRINT..]);
        Ok(Self { fingerprint, secret })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn token(seed: u8) -> Token {
        let hash = blake3::hash(&[seed]);
        let mut secret = [0; SECRET];
        secret.copy_from_slice(&hash.as_bytes()[..SECRET]);
        Token { fingerprint: *hash.as_bytes(), secret }
    }

    #[test]
    fn a_token_is_one_lower_case_word_and_reads_back() {
        for seed in 0..=255 {
            let word = token(seed).to_string();
            assert_eq!(word.len(), 88);
            assert!(word.starts_with("rl1-") && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'));
            assert_eq!(word.parse::<Token>().unwrap(), token(seed));
            assert_eq!(format!("  {word}\n").parse::<Token>().unwrap(), token(seed));
            assert_eq!(format!("rl1-{}", word[4..].to_uppercase()).parse::<Token>().unwrap(), token(seed));
        }
    }

    #[test]
    fn every_wrong_letter_is_noticed() {
        let word = token(1).to_string();
        for at in PREFIX.len()..word.len() {
            for letter in ALPHABET.bytes() {
                let mut typo = word.clone().into_bytes();
                typo[at] = letter;
                let typo = String::from_utf8(typo).unwrap();
                if typo != word {
                    assert_eq!(typo.parse::<Token>(), Err(TokenError::Checksum), "{typo}");
                }
            }
        }
    }

    #[test]
    fn mistakes_are_told_apart() {
        let word = token(2).to_string();
        for cut in 1..word.len() {
            assert_eq!(word[..cut].parse::<Token>(), Err(TokenError::CutOff { got: cut }));
        }
        assert_eq!(format!("{word}a").parse::<Token>(), Err(TokenError::TooLong { got: 89 }));
        assert_eq!("".parse::<Token>(), Err(TokenError::Prefix));
        assert_eq!("abc".parse::<Token>(), Err(TokenError::Prefix));
        assert_eq!("rl1-ab0".parse::<Token>(), Err(TokenError::Character { character: '0', place: 7 }));
        assert_eq!("rl1-é".parse::<Token>(), Err(TokenError::Character { character: 'é', place: 5 }));
    }

    #[test]
    fn the_debug_form_hides_the_secret() {
        let shown = format!("{:?}", token(3));
        assert!(shown.contains("(hidden)"));
        let secret = blake3::Hash::from_bytes(*blake3::hash(&[3]).as_bytes()).to_hex();
        assert!(!shown.replace(secret.as_str(), "").contains(&secret[..8]));
    }
}
