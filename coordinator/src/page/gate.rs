//! Who may read a page, and who may act on its run: decided by a request's own headers.
//! Pure.
//!
//! A browser sends requests for any site that it shows. So a request must name this server
//! (against names that are made to point here), must not come from another site's page, and
//! acts only with the token, which the address that the coordinator prints carries. No other
//! site can read the token or have it sent: its cookie is strict, and the origin is checked.

use std::net::IpAddr;

/// The headers of each answer: nothing from elsewhere is loaded, nothing is framed, nothing
/// is kept.
pub(super) const HEADERS: [(&str, &str); 7] = [
    ("content-security-policy", "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"),
    ("x-frame-options", "DENY"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cache-control", "no-store"),
];

/// Where a page is served.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    /// On the loopback address: then whoever is on this machine may read.
    pub loopback: bool,
    /// Other names of this server, in lower case.
    pub names: Vec<String>,
    /// Whoever has it may read and act.
    pub token: String,
    /// The name of the cookie that holds it: two runs on one machine have two.
    pub cookie: String,
}

/// What of a request matters.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Asked<'a> {
    /// It changes something.
    pub acts: bool,
    pub host: Option<&'a str>,
    pub origin: Option<&'a str>,
    pub fetch_site: Option<&'a str>,
    pub cookie: Option<&'a str>,
    pub authorization: Option<&'a str>,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Answered. `trusted`: it may act.
    Serve { trusted: bool },
    /// The token has to be given first.
    AskForToken,
    /// Not answered, for this reason.
    Refuse(&'static str),
}

impl Gate {
    pub(super) fn scheme(&self) -> &'static str {
        if self.loopback { "http" } else { "https" }
    }

    pub(super) fn judge(&self, asked: Asked<'_>) -> Verdict {
        let Some(host) = asked.host.filter(|host| self.is_own(host)) else {
            return Verdict::Refuse("this server is not the one that the request names (its header Host)");
        };
        let own = format!("{}://{host}", self.scheme());
        if asked.origin.is_some_and(|origin| !origin.eq_ignore_ascii_case(&own)) {
            return Verdict::Refuse("the request comes from the page of another site (its header Origin)");
        }
        if asked.fetch_site.is_some_and(|site| !["same-origin", "none"].contains(&site)) {
            return Verdict::Refuse("the request comes from another site: type or paste the address");
        }
        let bearer = asked.authorization.and_then(|text| text.strip_prefix("Bearer "));
        if bearer.is_some_and(|token| !self.is_token(token.trim())) {
            return Verdict::Refuse("the token is wrong");
        }
        let trusted = bearer.is_some() || self.has_cookie(asked.cookie.unwrap_or_default());
        match (trusted, asked.acts) {
            // A browser names the origin of what acts; other programs send no cookies.
            (true, true) if bearer.is_none() && asked.origin.is_none() => {
                Verdict::Refuse("a request that acts must say where it comes from (its header Origin)")
            }
            (true, _) => Verdict::Serve { trusted },
            (false, true) => Verdict::Refuse("open the page by the address that the coordinator printed: it has the token"),
            (false, false) if self.loopback => Verdict::Serve { trusted },
            (false, false) => Verdict::AskForToken,
        }
    }

    /// Whether this is the token. Takes as long for any wrong one of its length.
    pub(super) fn is_token(&self, given: &str) -> bool {
        let (given, token) = (given.as_bytes(), self.token.as_bytes());
        given.len() == token.len() && given.iter().zip(token).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }

    /// The header that has a browser keep the token.
    pub(super) fn set_cookie(&self) -> String {
        let secure = if self.loopback { "" } else { "; Secure" };
        format!("{}={}; Path=/; HttpOnly; SameSite=Strict{secure}", self.cookie, self.token)
    }

    fn has_cookie(&self, header: &str) -> bool {
        let pairs = header.split(';').filter_map(|pair| pair.trim().split_once('='));
        pairs.into_iter().any(|(name, value)| name == self.cookie && self.is_token(value))
    }

    /// An address cannot be made to point elsewhere, and a name can: only known ones pass. The
    /// port may be another one, that of a tunnel.
    fn is_own(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split_once(']').map_or(rest, |(address, _)| address),
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        match name.parse::<IpAddr>() {
            Ok(address) => !self.loopback || address.is_loopback(),
            Err(_) => self.names.iter().any(|known| known.eq_ignore_ascii_case(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(loopback: bool) -> Gate {
        let names = vec![if loopback { "localhost" } else { "trainer.example" }.to_owned()];
        Gate { loopback, names, token: "5ec2e7".to_owned(), cookie: "ringleader-7475".to_owned() }
    }

    const COOKIE: Option<&str> = Some("a=b; ringleader-7475=5ec2e7");

    #[test]
    fn hosts_that_are_foreign_are_refused() {
        let served =
            |gate: &Gate, host| matches!(gate.judge(Asked { host, ..Asked::default() }), Verdict::Serve { .. } | Verdict::AskForToken);
        let (here, abroad) = (gate(true), gate(false));
        for host in ["127.0.0.1:7475", "localhost:7475", "LOCALHOST", "[::1]:7475", "localhost:8080", "127.0.0.1"] {
            assert!(served(&here, Some(host)), "{host}");
        }
        for host in ["evil.example", "evil.example:7475", "192.0.2.7:7475", "", "[::2]", "localhost.evil.example", "127.0.0.1.nip.io"] {
            assert!(!served(&here, Some(host)), "{host}");
        }
        assert!(!served(&here, None) && !served(&abroad, Some("evil.example")));
        assert!(served(&abroad, Some("192.0.2.7:7475")) && served(&abroad, Some("trainer.example")));
    }

    #[test]
    fn other_sites_can_neither_read_nor_act() {
        let gate = gate(true);
        let asked = Asked { host: Some("localhost:7475"), cookie: COOKIE, ..Asked::default() };
        for (origin, fetch_site) in [
            (Some("http://evil.example"), None),
            (Some("null"), None),
            (Some("http://localhost:8888"), Some("same-site")),
            (Some("https://localhost:7475"), None),
            (None, Some("cross-site")),
            (None, Some("same-site")),
        ] {
            for acts in [false, true] {
                let verdict = gate.judge(Asked { acts, origin, fetch_site, ..asked });
                assert!(matches!(verdict, Verdict::Refuse(_)), "{origin:?} {fetch_site:?}: {verdict:?}");
            }
        }
        let own = Asked { origin: Some("http://localhost:7475"), fetch_site: Some("same-origin"), acts: true, ..asked };
        assert_eq!(gate.judge(own), Verdict::Serve { trusted: true });
        assert!(matches!(gate.judge(Asked { origin: None, ..own }), Verdict::Refuse(_)), "a form of an old browser");
    }

    #[test]
    fn on_this_machine_all_may_read_and_who_has_the_token_may_act() {
        let gate = gate(true);
        let asked = Asked { host: Some("127.0.0.1:7475"), ..Asked::default() };
        assert_eq!(gate.judge(asked), Verdict::Serve { trusted: false });
        assert_eq!(gate.judge(Asked { cookie: COOKIE, ..asked }), Verdict::Serve { trusted: true });
        let act = Asked { acts: true, origin: Some("http://127.0.0.1:7475"), ..asked };
        for cookie in [None, Some("ringleader-7475=wrong!"), Some("ringleader-7475="), Some("other=5ec2e7")] {
            assert!(matches!(gate.judge(Asked { cookie, ..act }), Verdict::Refuse(_)), "{cookie:?}");
        }
        let bearer = Asked { authorization: Some("Bearer 5ec2e7"), acts: true, ..asked };
        assert_eq!(gate.judge(bearer), Verdict::Serve { trusted: true });
        assert!(matches!(gate.judge(Asked { authorization: Some("Bearer 5ec2e8"), ..bearer }), Verdict::Refuse(_)));
    }

    #[test]
    fn elsewhere_the_token_comes_first() {
        let gate = gate(false);
        let asked = Asked { host: Some("trainer.example:7475"), ..Asked::default() };
        assert_eq!(gate.judge(asked), Verdict::AskForToken);
        assert_eq!(gate.judge(Asked { cookie: COOKIE, ..asked }), Verdict::Serve { trusted: true });
        assert_eq!(gate.judge(Asked { authorization: Some("Bearer 5ec2e7"), ..asked }), Verdict::Serve { trusted: true });
        assert!(gate.set_cookie().contains("Secure") && gate.set_cookie().contains("SameSite=Strict"));
        assert!(!self::gate(true).set_cookie().contains("Secure"), "there is no TLS on the loopback address");
    }
}
