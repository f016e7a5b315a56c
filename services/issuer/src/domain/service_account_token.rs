//! Whether a token of another issuer is exchanged for one of a service account, and for which.

use model::ServiceAccountId;
use model::trust::{Claims, TrustPolicy};
use time::{Duration, OffsetDateTime};

/// A token's life, unless the one that it is exchanged for ends before.
pub const LIFETIME: Duration = Duration::minutes(15);

/// What is known when someone asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// As which service account.
    pub account: ServiceAccountId,
    /// Which tokens it stands for.
    pub policies: Vec<TrustPolicy>,
    /// The `iss` of the token that is shown, which is verified.
    pub issuer: String,
    /// Whom it is for.
    pub audiences: Vec<String>,
    /// What it says.
    pub claims: Claims,
    /// Until when it is valid.
    pub valid_until: OffsetDateTime,
    /// The time.
    pub now: OffsetDateTime,
}

/// What there is in exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The token's subject.
    pub account: ServiceAccountId,
    /// From when it is valid.
    pub issued: OffsetDateTime,
    /// Until when.
    pub expires: OffsetDateTime,
    /// The policy that admitted the token that was shown.
    pub policy: TrustPolicy,
    /// What that token says of the claims for which the policy asks.
    pub claims: Vec<(String, String)>,
}

/// Why there is nothing in exchange.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No policy admits the token.
    #[error(
        "no trust policy of the service account admits the token; it is not as they ask in: {}",
        .0.join(", ")
    )]
    NotAdmitted(Vec<String>),
    /// It is over, or will be within a second.
    #[error("the token has expired; get a new one")]
    Expired,
}

/// Decides: one policy must admit the token as a whole.
pub fn decide(question: &Question) -> Result<Grant, Refusal> {
    let Question {
        policies, claims, ..
    } = question;
    let admits =
        |policy: &&TrustPolicy| policy.admits(&question.issuer, &question.audiences, claims);
    let policy = policies.iter().find(admits);
    let policy = policy.ok_or_else(|| Refusal::NotAdmitted(unlike(question)))?;
    // Tokens count in whole seconds (RFC 7519, 2: NumericDate).
    let issued = question.now.replace_nanosecond(0).unwrap_or(question.now);
    let expires = question.valid_until.min(issued + LIFETIME);
    if expires <= issued {
        return Err(Refusal::Expired);
    }
    let said = policy.claims.keys().map(ToString::to_string);
    let said = said.filter_map(|name| claims.get(&name).cloned().map(|value| (name, value)));
    Ok(Grant {
        account: question.account,
        issued,
        expires,
        claims: said.collect(),
        policy: policy.clone(),
    })
}

/// In what the token differs from the policy to which it is nearest. What the policy asks for is not told.
fn unlike(question: &Question) -> Vec<String> {
    let of_issuer = |policy: &&TrustPolicy| policy.issuer.as_str() == question.issuer;
    let differing = question.policies.iter().filter(of_issuer).map(|policy| {
        let mut names: Vec<String> = policy
            .unlike(&question.claims)
            .map(ToString::to_string)
            .collect();
        if !question.audiences.contains(&policy.audience.to_string()) {
            names.push("aud".to_owned());
        }
        names
    });
    let nearest = differing.min_by_key(Vec::len);
    nearest.unwrap_or_else(|| vec!["iss".to_owned()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::trust::Pattern;

    const ISSUER: &str = "https://ci.example.com";

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds)
    }

    fn policy(audience: &str, claims: &[(&str, &str)]) -> TrustPolicy {
        let claims = claims.iter().map(|(name, glob)| {
            let pattern = Pattern::glob(glob).expect("a pattern");
            (name.parse().expect("a name"), pattern)
        });
        TrustPolicy {
            issuer: ISSUER.parse().expect("a URL"),
            audience: audience.parse().expect("an audience"),
            signing_algorithm: None,
            claims: claims.collect(),
        }
    }

    fn question() -> Question {
        let claims = [("sub", "repo:acme/web"), ("env", "prod"), ("run", "7")];
        Question {
            account: ServiceAccountId::from_uuid(uuid::Uuid::from_u128(1)),
            policies: vec![
                policy("other", &[("sub", "repo:acme/*")]),
                policy("tharsis", &[("sub", "repo:acme/*"), ("env", "prod")]),
            ],
            issuer: ISSUER.to_owned(),
            audiences: vec!["x".to_owned(), "tharsis".to_owned()],
            claims: claims
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            valid_until: at(10_000),
            now: at(1_000) + Duration::milliseconds(700),
        }
    }

    #[test]
    fn what_a_policy_admits_is_exchanged() {
        let grant = decide(&question()).expect("a grant");
        assert_eq!((grant.issued, grant.expires), (at(1_000), at(1_900)));
        assert_eq!(grant.policy.audience.to_string(), "tharsis");
        // What nobody asked for is not kept.
        let said = [("env", "prod"), ("sub", "repo:acme/web")];
        let said = said.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(grant.claims, said);
    }

    #[test]
    fn it_never_lives_longer_than_what_it_was_exchanged_for() {
        let until = |valid_until| {
            let asked = Question {
                valid_until,
                ..question()
            };
            decide(&asked).map(|grant| grant.expires)
        };
        assert_eq!(until(at(1_001)), Ok(at(1_001)));
        assert_eq!(until(at(1_900)), Ok(at(1_900)));
        assert_eq!(until(at(1_901)), Ok(at(1_900)));
        // Clocks may differ by a little when a token is verified; what is signed is never over already.
        assert_eq!(until(at(1_000)), Err(Refusal::Expired));
        assert_eq!(until(at(990)), Err(Refusal::Expired));
    }

    #[test]
    fn one_policy_must_admit_all_of_it() {
        let refused = |change: &dyn Fn(&mut Question)| {
            let mut asked = question();
            change(&mut asked);
            decide(&asked).map(|grant| grant.expires)
        };
        let unlike = |names: &[&str]| {
            let names = names.iter().map(ToString::to_string);
            Err(Refusal::NotAdmitted(names.collect()))
        };
        let says = |name: &str, value: &str| {
            let (name, value) = (name.to_owned(), value.to_owned());
            move |asked: &mut Question| drop(asked.claims.insert(name.clone(), value.clone()))
        };
        assert_eq!(refused(&says("env", "dev")), unlike(&["aud"]));
        assert_eq!(refused(&says("sub", "repo:acm/web")), unlike(&["sub"]));
        assert!(refused(&|asked| asked.audiences = vec!["other".to_owned()]).is_ok());
        assert_eq!(
            refused(&|asked| {
                asked.policies.remove(0);
                asked.claims.clear();
            }),
            unlike(&["env", "sub"])
        );
        assert_eq!(
            refused(&|asked| asked.issuer = format!("{ISSUER}/")),
            unlike(&["iss"])
        );
        assert_eq!(refused(&|asked| asked.policies.clear()), unlike(&["iss"]));
    }
}
