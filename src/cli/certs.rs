//! `gangplank certs`

use std::{
    fmt::Write,
    time::{Duration, SystemTime},
};

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use serde_json::{Value, json};

use crate::{
    cli::{DENIED, FAILED, OK, Output},
    cluster::{
        self, ClusterArgs, Registered,
        authority::{self, Place, Vault},
        chain,
    },
    report,
    tls::{
        authority::Lives,
        bundle::{self, Anchor},
        moment,
        rotation::{self, Published, Stored},
    },
    webhook::registration::DEFAULT_NAME,
};

/// How long the API server may take to answer.
const LIMIT: Duration = Duration::from_secs(15);

/// The arguments of `gangplank certs`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 every entry trusts who signs, 1 one does not or something has ended, \
                        2 something could not be looked at."
)]
pub struct Args {
    /// The Secret of the authority, as <namespace>/<name>; without it <registration name>-ca in the
    /// namespace of the Service that the webhook configurations name
    #[arg(long, value_name = "SECRET", value_parser = Place::parse)]
    ca_secret: Option<Place>,
    /// The name of both webhook configurations
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAME)]
    registration_name: String,
    /// The form of the answer
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Shows the authority, and whether the webhook configurations trust it.
pub fn run(args: &Args) -> u8 {
    let looked = super::runtime().and_then(|runtime| {
        runtime.block_on(async {
            tokio::time::timeout(LIMIT, look(args)).await.map_err(|_| {
                format!("the API server did not answer within {} s", LIMIT.as_secs())
            })?
        })
    });
    let sight = match looked {
        Ok(sight) => sight,
        Err(error) => {
            report::complain(&error);
            return FAILED;
        }
    };
    let text = match args.output {
        Output::Text => sight.text(),
        Output::Json => format!("{:#}\n", sight.json()),
    };
    let code = if sight.problems().is_empty() {
        OK
    } else {
        DENIED
    };
    super::print(&text, code)
}

async fn look(args: &Args) -> Result<Sight, String> {
    let failed = |error: cluster::ClusterError| chain(&error);
    let client = args.cluster.client().await.map_err(failed)?;
    let now = authority::server_time(&client).await.map_err(failed)?;
    let seen = cluster::registered(&client, &args.registration_name)
        .await
        .map_err(failed)?;
    let of_service = seen.service_namespace().map(|namespace| Place {
        namespace: namespace.to_owned(),
        name: format!("{}-ca", args.registration_name),
    });
    let secret = match args.ca_secret.clone().or(of_service) {
        None => Held::Elsewhere,
        Some(place) => {
            let found = Api::<Secret>::namespaced(client, &place.namespace)
                .get_opt(&place.name)
                .await
                .map_err(|error| format!("cannot read the Secret {place}: {}", chain(&error)))?;
            match found.map(|secret| Vault::read(&secret, &place, Lives::default())) {
                Some(Ok(Some(vault))) => Held::These(place, vault.stored()),
                Some(Err(error)) => Held::Unusable(error.to_string()),
                // Where nobody named it, the certificates come from files.
                None | Some(Ok(None)) if args.ca_secret.is_none() => Held::Elsewhere,
                None | Some(Ok(None)) => Held::Unusable(format!("there is no Secret {place}")),
            }
        }
    };
    Ok(Sight {
        registration: args.registration_name.clone(),
        secret,
        published: authority::published(&seen),
        entries: entries(&seen),
        now: now.unwrap_or_else(SystemTime::now),
    })
}

/// The entries, and the certificates that each trusts.
fn entries(seen: &Registered) -> Vec<Entry> {
    let entries = seen.bundles().map(|(name, pem)| Entry {
        name: name.to_owned(),
        bundle: bundle::read(pem).map_err(|error| error.to_string()),
    });
    entries.collect()
}

/// The authority.
#[derive(Debug)]
enum Held {
    /// In this Secret.
    These(Place, Stored),
    /// A Secret is named, and of no use.
    Unusable(String),
    /// Not in a Secret: in files, or in the memory of one process.
    Elsewhere,
}

/// An entry of the webhook configurations.
#[derive(Debug)]
struct Entry {
    name: String,
    bundle: Result<Vec<Anchor>, String>,
}

/// What was seen.
#[derive(Debug)]
struct Sight {
    registration: String,
    secret: Held,
    entries: Vec<Entry>,
    published: Published,
    now: SystemTime,
}

impl Sight {
    /// What is wrong, in sentences.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Held::Unusable(error) = &self.secret {
            problems.push(error.clone());
        }
        let stored = match &self.secret {
            Held::These(place, stored) => Some((place, stored)),
            Held::Unusable(_) | Held::Elsewhere => None,
        };
        if let Some((place, stored)) = stored {
            let (from, until) = (stored.signer.not_before, stored.signer.not_after);
            if until <= self.now {
                problems.push(format!(
                    "the authority in {place} ended at {}: nobody can sign a certificate; is a \
                     replica running?",
                    moment(until)
                ));
            } else if self.now < from {
                problems.push(format!(
                    "the authority in {place} holds only from {}: a clock was wrong when it was made",
                    moment(from)
                ));
            }
        }
        if self.entries.is_empty() {
            problems.push(format!(
                "there are no webhook configurations {:?}: the API server asks nobody",
                self.registration
            ));
        }
        for Entry { name, bundle } in &self.entries {
            match bundle {
                Err(error) => problems.push(format!("{name}: caBundle is not readable: {error}")),
                Ok(bundle) if bundle.is_empty() => problems.push(format!(
                    "{name}: caBundle is empty: the API server trusts its own host's authorities only"
                )),
                Ok(bundle) if bundle.iter().all(|anchor| anchor.not_after <= self.now) => {
                    problems.push(format!("{name}: all that caBundle holds has ended"));
                }
                Ok(bundle) => {
                    if let Some((place, stored)) = stored
                        && !bundle.contains(&stored.signer)
                    {
                        problems.push(format!(
                            "{name}: caBundle lacks who signs, {}: the API server refuses every \
                             certificate of {place}",
                            bundle::short(&stored.signer.fingerprint())
                        ));
                    }
                }
            }
        }
        problems
    }

    /// Whether an entry holds just what the Secret says; none where there is nothing to compare with.
    fn agrees(&self, entry: &Entry) -> Option<bool> {
        let Held::These(_, stored) = &self.secret else {
            return None;
        };
        let bundle = entry.bundle.as_ref().ok()?;
        Some(
            bundle.iter().collect::<std::collections::BTreeSet<_>>()
                == stored.bundle.iter().collect(),
        )
    }

    /// What will happen next.
    fn next(&self) -> Option<String> {
        match &self.secret {
            Held::These(_, stored) => Some(rotation::outlook(stored, &self.published, self.now)),
            Held::Unusable(_) | Held::Elsewhere => None,
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        match &self.secret {
            Held::These(place, stored) => {
                let _ = writeln!(text, "Secret {place}");
                let _ = writeln!(text, "  signs now:  {}", stored.signer.describe());
                if let Some(next) = &stored.next {
                    let _ = writeln!(text, "  signs next: {}", next.describe());
                }
                let others = stored.bundle.iter().filter(|anchor| {
                    **anchor != stored.signer && Some(*anchor) != stored.next.as_ref()
                });
                for anchor in others {
                    let _ = writeln!(text, "  signed before: {}", anchor.describe());
                }
            }
            Held::Unusable(_) => {}
            Held::Elsewhere => text.push_str(
                "No Secret: the authority is in files or in memory (--ca-secret names one)\n",
            ),
        }
        for entry in &self.entries {
            let word = match self.agrees(entry) {
                Some(true) => ", as the Secret says",
                Some(false) => ", not as the Secret says",
                None => "",
            };
            let _ = writeln!(text, "Entry {}{word}", entry.name);
            for anchor in entry.bundle.iter().flatten() {
                let _ = writeln!(text, "  trusts {}", anchor.describe());
            }
        }
        if let Some(next) = self.next() {
            let _ = writeln!(text, "Next: {next}");
        }
        for problem in self.problems() {
            let _ = writeln!(text, "Problem: {problem}");
        }
        text
    }

    fn json(&self) -> Value {
        let anchor = |anchor: &Anchor| {
            json!({
                "subject": anchor.subject(),
                "sha256": anchor.fingerprint(),
                "notBefore": moment(anchor.not_before),
                "notAfter": moment(anchor.not_after),
            })
        };
        let secret = match &self.secret {
            Held::These(place, stored) => json!({
                "namespace": place.namespace,
                "name": place.name,
                "signer": anchor(&stored.signer),
                "next": stored.next.as_ref().map(anchor),
                "bundle": stored.bundle.iter().map(anchor).collect::<Vec<_>>(),
            }),
            Held::Unusable(_) | Held::Elsewhere => Value::Null,
        };
        let entries = self.entries.iter().map(|entry| {
            json!({
                "name": entry.name,
                "bundle": entry.bundle.iter().flatten().map(anchor).collect::<Vec<_>>(),
                "agrees": self.agrees(entry),
            })
        });
        json!({
            "secret": secret,
            "entries": entries.collect::<Vec<_>>(),
            "next": self.next(),
            "problems": self.problems(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::authority::Authority;

    #[test]
    fn says_what_is_wrong_and_nothing_of_what_is_right() {
        let now = SystemTime::now();
        let make = || Authority::new(now, Lives::default()).unwrap();
        let (ours, other) = (make().anchor().clone(), make().anchor().clone());
        let sight = |trusted: &[&Anchor], later| {
            let bundle: Vec<Anchor> = trusted.iter().map(|one| (*one).clone()).collect();
            let place = Place::parse("system/gangplank-ca").unwrap();
            let stored = Stored {
                signer: ours.clone(),
                next: None,
                bundle: [ours.clone()].into(),
            };
            Sight {
                registration: "gangplank".to_owned(),
                secret: Held::These(place, stored),
                published: Published {
                    entries: vec![bundle.iter().cloned().collect()],
                },
                entries: vec![Entry {
                    name: "enforce".to_owned(),
                    bundle: Ok(bundle),
                }],
                now: now + later,
            }
        };
        let soon = Duration::from_secs(60);
        let good = sight(&[&ours], soon);
        assert!(good.problems().is_empty(), "{:?}", good.problems());
        assert!(good.text().contains("Entry enforce, as the Secret says"));
        assert_eq!(good.json()["entries"][0]["agrees"], true);
        // While one follows the other, both are trusted.
        let both = sight(&[&ours, &other], soon);
        assert!(both.problems().is_empty());
        assert!(
            both.text()
                .contains("Entry enforce, not as the Secret says")
        );
        let says = |sight: Sight, what: &str| {
            let problems = sight.problems().join("\n");
            assert!(problems.contains(what), "{problems}");
        };
        says(sight(&[&other], soon), "caBundle lacks who signs");
        says(sight(&[], soon), "caBundle is empty");
        let ended = sight(&[&ours], Duration::from_secs(366 * 86_400));
        says(ended, "the authority in system/gangplank-ca ended at");
        let mut none = sight(&[], soon);
        none.entries.clear();
        says(none, "there are no webhook configurations \"gangplank\"");
    }
}
