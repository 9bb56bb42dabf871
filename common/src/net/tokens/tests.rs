#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn tokens() -> (tempfile::TempDir, Tokens) {
    let dir = tempfile::tempdir().unwrap();
    let tokens = Tokens::new(dir.path(), [7; 32]);
    (dir, tokens)
}

#[test]
fn a_token_admits_until_it_expires_or_is_revoked() {
    let (_dir, tokens) = tokens();
    let now = SystemTime::now();
    let token = tokens.create(DAY, now).unwrap();
    let id = id(&token.secret);
    let refused = |at| tokens.find(&id, at).unwrap().unwrap().refused;
    assert_eq!(tokens.find(&id, now).unwrap().unwrap().secret, token.secret);
    assert_eq!((refused(now), refused(now + DAY / 2)), (None, None));
    assert_eq!(refused(now + DAY), Some("this token has expired"));
    assert!(tokens.find("00000000", now).unwrap().is_none());
    tokens.revoke(&id).unwrap();
    assert_eq!(refused(now), Some("this token was revoked"));
    assert!(tokens.revoke("00000000").unwrap_err().to_string().contains("00000000"));
}

#[test]
fn the_standing_token_is_replaced_in_time() {
    let (_dir, tokens) = tokens();
    let now = SystemTime::now();
    let first = tokens.standing(now).unwrap();
    assert!(first == tokens.standing(now + 5 * DAY).unwrap());
    let second = tokens.standing(now + 7 * DAY).unwrap();
    assert!(first != second);
    tokens.revoke(&id(&second.secret)).unwrap();
    assert!(second != tokens.standing(now + 7 * DAY).unwrap());
    let listed = tokens.list().unwrap();
    assert_eq!(listed.iter().map(|t| t.revoked).collect::<Vec<_>>(), [false, true, false]);
    assert_eq!(listed[0].expires.duration_since(listed[0].created).unwrap(), LIFETIME);
}

#[test]
fn old_tokens_are_forgotten_and_revoked_ones_are_not() {
    let (_dir, tokens) = tokens();
    let now = SystemTime::now();
    let revoked = tokens.create(DAY, now).unwrap();
    tokens.create(DAY, now).unwrap();
    tokens.revoke(&id(&revoked.secret)).unwrap();
    let new = tokens.create(DAY, now + 100 * DAY).unwrap();
    let ids: Vec<_> = tokens.list().unwrap().into_iter().map(|t| t.id).collect();
    assert_eq!(ids, [id(&revoked.secret), id(&new.secret)]);
}

#[test]
fn a_revocation_outlives_the_file_of_tokens() {
    let (dir, tokens) = tokens();
    let now = SystemTime::now();
    let path = dir.path().join("tokens.json");
    let bad = tokens.create(DAY, now).unwrap();
    let before = fs::read(&path).unwrap();
    tokens.revoke(&id(&bad.secret)).unwrap();
    let both: BTreeSet<String> = [id(&bad.secret)].into();
    assert_eq!(tokens.revocations().unwrap(), both);
    // Restored to an earlier state, or gone: the token stays revoked.
    fs::write(&path, &before).unwrap();
    assert_eq!(tokens.find(&id(&bad.secret), now).unwrap().unwrap().refused, Some("this token was revoked"));
    assert!(tokens.list().unwrap()[0].revoked && tokens.standing(now).unwrap() != bad);
    fs::remove_file(&path).unwrap();
    assert_eq!(tokens.revocations().unwrap(), both);
    // A token that only the journal knows, and a token while the file is damaged.
    assert!(matches!(tokens.revoke("00000001"), Err(AuthorityError::NoToken { .. })));
    tokens.revoke_unlisted("00000001").unwrap();
    fs::write(&path, "{").unwrap();
    tokens.revoke("00000002").unwrap();
    assert!(tokens.revoke("../../etc").is_err() && tokens.revoke_unlisted("0000000G").is_err());
    assert_eq!(tokens.revocations().unwrap().len(), 3);
    let text = tokens.list().unwrap_err().to_string();
    assert!(text.contains("stays revoked"), "{text}");
}

#[test]
fn revocations_of_an_older_version_are_taken_over_and_a_cut_line_costs_nothing() {
    let (dir, tokens) = tokens();
    let now = SystemTime::now();
    let bad = id(&tokens.create(DAY, now).unwrap().secret);
    tokens.revoke(&bad).unwrap();
    let file = dir.path().join("revoked");
    fs::remove_file(&file).unwrap();
    tokens.standing(now).unwrap();
    assert!(tokens.revocations().unwrap().contains(&bad));
    fs::write(&file, format!("{bad}\n0123")).unwrap();
    tokens.revoke_unlisted("89abcdef").unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{bad}\n0123\n89abcdef\n"));
    assert_eq!(tokens.revocations().unwrap().len(), 2);
}

#[test]
fn each_change_is_seen_in_the_stamp() {
    let (_dir, tokens) = tokens();
    let now = SystemTime::now();
    let mut seen = vec![tokens.stamp()];
    let mut look = || {
        let stamp = tokens.stamp();
        assert!(!seen.contains(&stamp));
        seen.push(stamp);
    };
    let token = tokens.create(DAY, now).unwrap();
    look();
    tokens.revoke(&id(&token.secret)).unwrap();
    look();
    tokens.revoke_unlisted("00000001").unwrap();
    look();
    assert_eq!(seen.last(), Some(&tokens.stamp()));
}

#[test]
fn lifetimes_are_bounded_and_absurd_ones_in_the_file_are_survived() {
    let (dir, tokens) = tokens();
    let now = SystemTime::now();
    for lifetime in [MAX_LIFETIME + Duration::from_secs(1), Duration::MAX] {
        let text = tokens.create(lifetime, now).unwrap_err().to_string();
        assert!(text.contains("ten years"), "{text}");
    }
    tokens.create(MAX_LIFETIME, now).unwrap();
    let path = dir.path().join("tokens.json");
    let text = fs::read_to_string(&path).unwrap();
    let expires = unix(now) + MAX_LIFETIME.as_secs();
    fs::write(&path, text.replace(&expires.to_string(), &u64::MAX.to_string())).unwrap();
    assert!(tokens.list().unwrap()[0].expires >= SystemTime::UNIX_EPOCH);
    tokens.create(DAY, now).unwrap();
    tokens.standing(now).unwrap();
}

#[test]
fn a_lock_that_somebody_holds_is_named_after_a_while() {
    let (dir, tokens) = tokens();
    let held = open_lock(&dir.path().join("tokens.lock")).unwrap();
    held.lock().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            held.unlock().unwrap();
        });
        tokens.standing(SystemTime::now()).unwrap();
    });
}

#[test]
fn the_file_is_private_and_its_damage_is_named() {
    let (dir, tokens) = tokens();
    let token = tokens.standing(SystemTime::now()).unwrap();
    let path = dir.path().join("tokens.json");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&path).unwrap();
    for damage in ["", "[{}]", &text.replace(&HEXLOWER.encode(&token.secret), &HEXLOWER.encode(&[0; SECRET]))] {
        fs::write(&path, damage).unwrap();
        let error = tokens.list().unwrap_err().to_string();
        assert!(error.contains("tokens.json"), "{error}");
        assert!(tokens.standing(SystemTime::now()).is_err(), "a damaged file is not replaced");
    }
}
