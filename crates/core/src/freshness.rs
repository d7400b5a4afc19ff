//! When a tag's answer may be given without asking upstream, and what an upstream's answer means
//! for what is stored.

use std::time::Duration;

/// What to do about a tag whose answer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Give the stored answer; upstream is not asked.
    Serve,
    /// Ask upstream, and wait for its word within the deadline.
    Revalidate,
    /// Give the stored answer at once and ask upstream meanwhile: it has lately been away or slow,
    /// so waiting would most likely be in vain.
    ServeAndRevalidate,
}

/// What is known when a stored tag is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Situation {
    /// Time since upstream last confirmed the tag.
    pub age: Duration,
    /// How long a confirmation counts; 0 means that upstream is always asked.
    pub freshness: Duration,
    /// Whether upstream is never to be asked.
    pub offline: bool,
    /// Whether upstream's last sign was a failure or a missed deadline.
    pub upstream_suspect: bool,
}

/// Decides what to do about a stored tag.
pub fn plan(situation: Situation) -> Plan {
    if situation.offline || situation.age < situation.freshness {
        return Plan::Serve;
    }
    match situation.upstream_suspect {
        true => Plan::ServeAndRevalidate,
        false => Plan::Revalidate,
    }
}

/// What upstream said when it was asked whether a tag is still what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// The tag still names the stored digest.
    Same,
    /// The tag names another digest.
    Other,
    /// There is no such image (404), or nobody with our rights may see it (401, 403).
    Gone,
    /// Our own credential is refused: that says nothing about the image.
    CredentialRefused,
    /// Nothing: unreachable, 5xx, 429, or slow past the deadline.
    Nothing,
}

/// What becomes of a stored tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It counts as confirmed now.
    Fresh,
    /// It is replaced by what upstream names.
    Replace,
    /// It is served as it is, marked stale.
    Stale,
    /// It is not served any more: 404.
    NotFound,
}

/// Decides what becomes of a stored tag. `serve_deleted` is the upstream's setting: images deleted
/// there go on being served here.
pub fn settle(said: Said, serve_deleted: bool) -> Verdict {
    match said {
        Said::Same => Verdict::Fresh,
        Said::Other => Verdict::Replace,
        Said::Gone if serve_deleted => Verdict::Stale,
        Said::Gone => Verdict::NotFound,
        Said::CredentialRefused | Said::Nothing => Verdict::Stale,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_fresh_tag_is_served_without_asking() {
        assert_eq!(plan(situation()), Plan::Serve);
    }

    #[test]
    fn a_tag_as_old_as_its_freshness_is_asked_about() {
        assert_eq!(plan(Situation { age: MINUTE, ..situation() }), Plan::Revalidate);
        let always = Situation { age: Duration::ZERO, freshness: Duration::ZERO, ..situation() };
        assert_eq!(plan(always), Plan::Revalidate);
    }

    #[test]
    fn nobody_waits_for_an_upstream_that_was_away() {
        let away = Situation { age: MINUTE, upstream_suspect: true, ..situation() };
        assert_eq!(plan(away), Plan::ServeAndRevalidate);
    }

    #[test]
    fn offline_nothing_is_asked() {
        assert_eq!(plan(Situation { age: MINUTE, offline: true, ..situation() }), Plan::Serve);
    }

    #[test]
    fn only_a_word_about_the_image_takes_it_away() {
        assert_eq!(settle(Said::Gone, false), Verdict::NotFound);
        assert_eq!(settle(Said::Gone, true), Verdict::Stale);
        assert_eq!(settle(Said::CredentialRefused, false), Verdict::Stale);
        assert_eq!(settle(Said::Nothing, false), Verdict::Stale);
        assert_eq!(settle(Said::Same, false), Verdict::Fresh);
        assert_eq!(settle(Said::Other, true), Verdict::Replace);
    }

    fn situation() -> Situation {
        let age = Duration::from_secs(59);
        Situation { age, freshness: MINUTE, offline: false, upstream_suspect: false }
    }
}
