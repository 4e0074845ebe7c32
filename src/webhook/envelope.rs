//! From the bytes of an `AdmissionReview` (admission.k8s.io/v1) to a subject.
//!
//! The uid is read first: the API server drops an answer without it, so it is echoed even to a body
//! that makes no other sense.

use std::{collections::BTreeMap, fmt, sync::Arc};

use axum::http::StatusCode;
use serde::{
    Deserialize,
    de::{
        self, DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess,
        Visitor, value::SeqAccessDeserializer,
    },
};
use serde_json::{Map, Value};

use crate::subject::{Door, Operation, Subject, at};

/// The only version spoken.
pub const API_VERSION: &str = "admission.k8s.io/v1";

/// An admission request that could be read.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// To be echoed.
    pub uid: String,
    /// What is asked about.
    pub subject: Subject,
    /// Who asks.
    pub requester: Requester,
}

/// Who writes an object (`userInfo`, k8s.io/api authentication/v1). What an authorizer may go by is
/// kept whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Requester {
    /// The name.
    pub username: String,
    /// Tells users of one name apart over time.
    pub uid: String,
    /// The groups.
    pub groups: Vec<String>,
    /// What else the authenticator says.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Requester {
    /// Whatever cannot be read is not there, and gives no right.
    fn read(user: &mut Value) -> Self {
        Self {
            username: member(user, "username"),
            uid: member(user, "uid"),
            groups: member(user, "groups"),
            extra: member(user, "extra"),
        }
    }
}

/// Takes a member out of an object. What cannot be read counts as if it were not there.
fn member<T: DeserializeOwned + Default>(object: &mut Value, name: &str) -> T {
    object
        .get_mut(name)
        .and_then(|value| serde_json::from_value(value.take()).ok())
        .unwrap_or_default()
}

/// A request that cannot be answered with a verdict.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The HTTP status, also the code of the answer.
    pub code: StatusCode,
    /// To be echoed; empty where none could be read.
    pub uid: String,
    /// What is wrong with the request.
    pub message: String,
}

/// Reads an admission request.
///
/// # Errors
/// 400 for a body that is not JSON or not an `AdmissionReview` of v1 with a uid and an object of
/// the right shape.
pub fn open(body: &[u8], door: Door) -> Result<Envelope, Refusal> {
    let mut review = read(body).map_err(|error| Refusal {
        code: StatusCode::BAD_REQUEST,
        uid: salvage_uid(body),
        message: format!("the body is not JSON: {error}"),
    })?;
    let uid = review
        .get("request")
        .and_then(|request| request.get("uid")?.as_str())
        .unwrap_or_default()
        .to_owned();
    let refuse = |message: String| Refusal {
        code: StatusCode::BAD_REQUEST,
        uid: uid.clone(),
        message,
    };
    if !review.is_object() {
        return Err(refuse(format!(
            "the body is {}, not an AdmissionReview",
            type_of(&review)
        )));
    }
    let version: String = member(&mut review, "apiVersion");
    let kind: String = member(&mut review, "kind");
    if version != API_VERSION || kind != "AdmissionReview" {
        return Err(refuse(format!(
            "the body is {version:?} {kind:?}; only {API_VERSION:?} \"AdmissionReview\" is spoken here"
        )));
    }
    let Some(request) = review
        .get_mut("request")
        .filter(|request| request.is_object())
    else {
        return Err(refuse("the AdmissionReview holds no request".to_owned()));
    };
    if uid.is_empty() {
        return Err(refuse("the request has no uid".to_owned()));
    }
    let operation = match member::<String>(request, "operation").as_str() {
        "CREATE" => Operation::Create,
        "UPDATE" => Operation::Update,
        "DELETE" => Operation::Delete,
        "CONNECT" => Operation::Connect,
        other => return Err(refuse(format!("request.operation is {other:?}"))),
    };
    let mut of_kind = |name| -> String {
        let kind = request.get_mut("kind");
        kind.map(|kind| member(kind, name)).unwrap_or_default()
    };
    let (group, version, kind) = (of_kind("group"), of_kind("version"), of_kind("kind"));
    if kind.is_empty() || version.is_empty() {
        return Err(refuse("request.kind names no version and kind".to_owned()));
    }
    // The two are told apart by the slash between them from here on.
    if let Some(with_slash) = [&group, &version]
        .into_iter()
        .find(|name| name.contains('/'))
    {
        return Err(refuse(format!(
            "request.kind holds {with_slash:?}, which is neither a group nor a version"
        )));
    }
    let mut take = |name: &str| {
        request
            .get_mut(name)
            .map(Value::take)
            .filter(|value| !value.is_null())
    };
    let (object, old) = (take("object"), take("oldObject"));
    for (member, value) in [("object", &object), ("oldObject", &old)] {
        if let Some(value) = value
            && !value.is_object()
        {
            return Err(refuse(format!(
                "request.{member} is {}, not an object",
                type_of(value)
            )));
        }
    }
    // DELETE and CONNECT come without an object, or with one that is no object of ours.
    let value = match operation {
        Operation::Create | Operation::Update => {
            object.ok_or_else(|| refuse("the request holds no object".to_owned()))?
        }
        Operation::Delete | Operation::Connect => object.unwrap_or_default(),
    };
    if operation == Operation::Update && old.is_none() {
        return Err(refuse(
            "the request is an UPDATE without oldObject".to_owned(),
        ));
    }
    let name = Some(member::<String>(request, "name"))
        .filter(|name| !name.is_empty())
        .or_else(|| {
            at(&value, &["metadata", "name"])?
                .as_str()
                .map(str::to_owned)
        })
        .unwrap_or_default();
    let requester = request
        .get_mut("userInfo")
        .map(Requester::read)
        .unwrap_or_default();
    let subject = Subject {
        api_version: if group.is_empty() {
            version
        } else {
            format!("{group}/{version}")
        },
        kind,
        namespace: Some(member::<String>(request, "namespace")).filter(|name| !name.is_empty()),
        name,
        value: Arc::new(value),
        old: (operation == Operation::Update)
            .then(|| old.map(Arc::new))
            .flatten(),
        door,
        operation,
        subresource: member(request, "subResource"),
        user: requester.username.clone(),
    };
    Ok(Envelope {
        uid,
        subject,
        requester,
    })
}

/// Which members of a value are kept.
enum Kept {
    All,
    Members(&'static [(&'static str, Self)]),
}

/// What is read of an AdmissionReview. As much again stands beside it, such as three more kinds and
/// resources, and is not worth its memory.
static REVIEW: Kept = Kept::Members(&[
    ("apiVersion", Kept::All),
    ("kind", Kept::All),
    (
        "request",
        Kept::Members(&[
            ("uid", Kept::All),
            ("kind", Kept::All),
            ("name", Kept::All),
            ("namespace", Kept::All),
            ("operation", Kept::All),
            ("subResource", Kept::All),
            ("userInfo", Kept::All),
            ("object", Kept::All),
            ("oldObject", Kept::All),
        ]),
    ),
]);

/// Reads JSON, without the members that nobody asks for.
fn read(body: &[u8]) -> serde_json::Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let review = REVIEW.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(review)
}

impl<'de> DeserializeSeed<'de> for &'static Kept {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self {
            Kept::All => Value::deserialize(deserializer),
            Kept::Members(members) => deserializer.deserialize_any(KeptMembers(members)),
        }
    }
}

/// Reads an object of which these members are kept, and anything else whole.
struct KeptMembers(&'static [(&'static str, Kept)]);

impl<'de> Visitor<'de> for KeptMembers {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an AdmissionReview")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Value, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Value::Array)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(found) = map.next_key_seed(Wanted(self.0))? {
            match found {
                // The last of several counts, as it does for `Value`.
                Some((name, of_it)) => {
                    let value = map.next_value_seed(of_it)?;
                    kept.insert((*name).to_owned(), value);
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(kept))
    }
}

/// Finds the name of a member among those that are kept.
struct Wanted(&'static [(&'static str, Kept)]);

impl<'de> DeserializeSeed<'de> for Wanted {
    type Value = Option<&'static (&'static str, Kept)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Wanted {
    type Value = Option<&'static (&'static str, Kept)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a member")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().find(|(name, _)| *name == text))
    }
}

/// The JSON type of a value, as a message names it.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The uid in what can be read of a body before it breaks off.
pub fn salvage_uid(body: &[u8]) -> String {
    let mut uid = String::new();
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    // An error is the expected end; what was read before it counts.
    let _ = Members {
        wanted: &["request", "uid"],
        found: &mut uid,
    }
    .deserialize(&mut deserializer);
    uid
}

/// Walks down nested members and keeps the string at their end as soon as it is read. The last of
/// several counts, as it does where the whole body can be read.
struct Members<'a> {
    wanted: &'a [&'a str],
    found: &'a mut String,
}

impl<'de> DeserializeSeed<'de> for Members<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an AdmissionReview")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        if self.wanted.is_empty() {
            text.clone_into(self.found);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<(), A::Error> {
        IgnoredAny.visit_seq(seq).map(drop)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match self.wanted.split_first() {
                Some((first, below)) if *first == key => {
                    self.found.clear();
                    map.next_value_seed(Members {
                        wanted: below,
                        found: self.found,
                    })?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request() -> Value {
        json!({
            "apiVersion": API_VERSION, "kind": "AdmissionReview",
            "request": {
                "uid": "u-1", "operation": "CREATE", "namespace": "inference", "name": "",
                "kind": {"group": "apps", "version": "v1", "kind": "Deployment"},
                "object": {"metadata": {"name": "vllm"}}, "oldObject": null,
            },
        })
    }

    fn refusal(change: impl FnOnce(&mut Value)) -> Refusal {
        let mut review = request();
        change(&mut review);
        open(&serde_json::to_vec(&review).unwrap(), Door::Validate).unwrap_err()
    }

    #[test]
    fn reads_what_the_api_server_sends() {
        let envelope = open(&serde_json::to_vec(&request()).unwrap(), Door::Validate).unwrap();
        let subject = envelope.subject;
        assert_eq!(envelope.uid, "u-1");
        assert_eq!(
            (subject.api_version.as_str(), subject.kind.as_str()),
            ("apps/v1", "Deployment")
        );
        assert_eq!(
            (subject.namespace.as_deref(), subject.name.as_str()),
            (Some("inference"), "vllm")
        );
        assert!(subject.old.is_none());
    }

    #[test]
    fn what_nobody_reads_is_left_out_and_nothing_else() {
        let plain = request();
        let mut full = request();
        full["more"] = json!({"request": {"uid": "u-2"}});
        full["request"]["options"] = json!({"kind": "CreateOptions", "object": [1, {"uid": "x"}]});
        full["request"]["dryRun"] = json!(false);
        assert_eq!(read(&serde_json::to_vec(&full).unwrap()).unwrap(), plain);
        for other in [
            json!(null),
            json!(true),
            json!(-1),
            json!(1.5),
            json!("a"),
            json!([{"a": [1]}]),
        ] {
            let mut review = request();
            review["request"] = other.clone();
            assert_eq!(read(&serde_json::to_vec(&review).unwrap()).unwrap(), review);
            assert_eq!(read(&serde_json::to_vec(&other).unwrap()).unwrap(), other);
        }
        let twice = br#"{"kind": "a", "request": {"uid": 1}, "kind": "b", "request": {"name": 2}}"#;
        assert_eq!(
            read(twice).unwrap(),
            json!({"kind": "b", "request": {"name": 2}})
        );
        assert!(read(b"{} {}").is_err());
    }

    #[test]
    fn a_delete_needs_no_object() {
        let mut review = request();
        review["request"]["operation"] = json!("DELETE");
        review["request"]["object"] = Value::Null;
        let envelope = open(&serde_json::to_vec(&review).unwrap(), Door::Validate).unwrap();
        assert_eq!(envelope.subject.operation, Operation::Delete);
    }

    #[test]
    fn every_refusal_echoes_the_uid() {
        for change in [
            |review: &mut Value| review["apiVersion"] = json!("admission.k8s.io/v1beta1"),
            |review: &mut Value| review["kind"] = json!("Review"),
            |review: &mut Value| review["request"]["operation"] = json!("PATCH"),
            |review: &mut Value| review["request"]["kind"] = json!("Deployment"),
            |review: &mut Value| review["request"]["kind"]["version"] = json!("v1/"),
            |review: &mut Value| review["request"]["kind"]["group"] = json!("apps/v1"),
            |review: &mut Value| review["request"]["object"] = json!("text"),
            |review: &mut Value| review["request"]["object"] = Value::Null,
            |review: &mut Value| review["request"]["oldObject"] = json!([]),
            |review: &mut Value| review["request"]["operation"] = json!("UPDATE"),
        ] {
            let refusal = refusal(change);
            assert_eq!(
                (refusal.code, refusal.uid.as_str()),
                (StatusCode::BAD_REQUEST, "u-1"),
                "{refusal}"
            );
        }
        assert_eq!(
            refusal(|review| review["request"]["uid"] = json!(7)).message,
            "the request has no uid"
        );
        assert_eq!(refusal(|review| review["request"] = json!([])).uid, "");
    }

    #[test]
    fn a_truncated_body_still_gives_its_uid() {
        let whole = serde_json::to_vec(&request()).unwrap();
        let text = String::from_utf8(whole.clone()).unwrap();
        let after_uid = text.find("u-1").unwrap() + 4;
        for end in after_uid..whole.len() {
            let refusal = open(&whole[..end], Door::Validate).unwrap_err();
            assert_eq!(refusal.uid, "u-1", "cut at {end}");
        }
        for body in [
            &b""[..],
            b"null",
            b"[]",
            b"{",
            b"\xff\xfe",
            b"{\"request\":{\"uid\":{\"uid\":\"x\"}}",
            b"{\"request\":{\"uid\":\"u-1\",\"uid\":[1,{}],",
            b"{\"request\":{\"uid\":\"u-1\"},\"request\":{",
        ] {
            assert_eq!(open(body, Door::Validate).unwrap_err().uid, "");
        }
        for before in [
            "null",
            "true",
            "1",
            "-1",
            "1.5",
            "[{}]",
            "{\"uid\":{}}",
            "\"u-2\"",
        ] {
            for twice in [
                format!(r#"{{"request":{before},"request":{{"uid":"u-1","#),
                format!(r#"{{"request":{{"uid":{before},"uid":"u-1","#),
            ] {
                assert_eq!(salvage_uid(twice.as_bytes()), "u-1", "{twice}");
            }
        }
    }
}
