//! The stable codes: what a refusal and a verifier's fault are called, for programs.
//!
//! `docs/format.md` holds the same table for people; a test compares the two.

/// Declares the codes, each with its text, the HTTP status with which the daemon answers
/// (0 where the daemon never does) and what it means in a few words.
macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $status:literal, $title:literal;)*) => {
        /// A stable code. Its text never changes once released.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $(#[doc = $title] $variant,)* }

        impl Code {
            /// Every code, in the order of the table.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];

            /// The text, in kebab case.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text,)* }
            }

            /// Reads the text.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Code::$variant),)* _ => None }
            }

            /// The HTTP status with which the daemon answers, or 0 where only a verifier says it.
            #[must_use]
            pub fn status(self) -> u16 {
                match self { $(Code::$variant => $status,)* }
            }

            /// What it means, in a few words.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Code::$variant => $title,)* }
            }
        }
    };
}

codes! {
    // JSON (RFC 8259, RFC 7493): refused in a request, a fault in a bundle.
    JsonSyntax = "json-syntax", 400, "not JSON";
    JsonTruncated = "json-truncated", 400, "the JSON text ends too early";
    JsonTrailing = "json-trailing", 400, "something follows the JSON value";
    JsonUtf8 = "json-utf8", 400, "not UTF-8";
    JsonByteOrderMark = "json-byte-order-mark", 400, "begins with a byte order mark";
    JsonDuplicateName = "json-duplicate-name", 400, "a name occurs twice in one object";
    JsonLoneSurrogate = "json-lone-surrogate", 400, "half of a surrogate pair";
    JsonNoncharacter = "json-noncharacter", 400, "a Unicode noncharacter";
    JsonNumberRange = "json-number-range", 400, "a number beyond ±(2^53−1)";
    JsonNumberDigits = "json-number-digits", 400, "a number of more than 17 significant digits";
    JsonNumberUnderflow = "json-number-underflow", 400, "a number so small that it becomes zero";
    JsonNegativeZero = "json-negative-zero", 400, "negative zero";
    JsonDepth = "json-depth", 400, "nested deeper than 32";

    // Members.
    WrongType = "wrong-type", 400, "a member of the wrong JSON type";
    WrongValue = "wrong-value", 400, "a member's value is not one of those allowed";
    UnknownMember = "unknown-member", 400, "a member that the schema does not have";
    MissingMember = "missing-member", 400, "a member that is needed is missing";
    EntryTooLarge = "entry-too-large", 413, "the entry is over the size limit";

    // Admission.
    DaemonMember = "daemon-member", 400, "a member that only the daemon sets";
    ReservedEventType = "reserved-event-type", 400, "an event type that only the daemon writes";
    ReservedActionType = "reserved-action-type", 400, "an action type that only the daemon writes";
    ReservedActorId = "reserved-actor-id", 400, "an actor id that no client may claim";
    ReservedName = "reserved-name", 400, "a name inside an object that only the daemon sets";
    PillarsIncomplete = "pillars-incomplete", 400, "one to three pillar scores: give all four or none";
    UnknownDependency = "unknown-dependency", 422, "depends on an entry that is not in the ledger";
    GovernanceUnavailable = "governance-unavailable", 422, "asks for proofs or approvals, which this daemon cannot decide";
    EntryIdConflict = "entry-id-conflict", 409, "the entry id was used with other content";
    EntryIdTaken = "entry-id-taken", 409, "the entry id was used by another caller";

    // Governance: refused by the daemon, a fault in a ledger.
    Rules = "rules", 422, "the rules are malformed or contradict themselves";
    RulesSharedKey = "rules-shared-key", 422, "two names in the rules have one key";
    RulesUnmeetable = "rules-unmeetable", 422, "the rules demand what nobody they name could meet";
    ActorNotAllowed = "actor-not-allowed", 403, "the rules do not let this caller act as that";
    AttributionInvariant = "invariant-1-attribution", 422, "the attribution was not verified at the last boot";
    SafetyFloorInvariant = "invariant-2-safety-floor", 422, "claims SUCCESS under the safety floor";
    RollbackInvariant = "invariant-3-rollback", 422, "a rollback that could not be, or is not, what it claims";
    PillarsInvariant = "invariant-4-pillars", 422, "claims SUCCESS without the pillar scores it needs";
    K1StateInvariant = "invariant-5-k1-state", 422, "not in state K1, or with conflicts";
    QuorumInvariant = "invariant-6-quorum", 422, "needs approvals that it does not have";
    ChainInvariant = "invariant-7-chain", 422, "claims SUCCESS without the chain it needs";
    ProofFailed = "proof-failed", 422, "claims SUCCESS without a valid proof that is required";
    ProposalMalformed = "proposal-malformed", 422, "not a proposal that could be opened";
    ProposalNotNeeded = "proposal-not-needed", 422, "nothing has to be approved: append it";
    ProposalUnknown = "proposal-unknown", 404, "there is no such proposal";
    ProposalClosed = "proposal-closed", 409, "the proposal was sealed, rejected, withdrawn or has expired";
    ProposalExpired = "proposal-expired", 409, "the proposal's time is over";
    ProposalExpiry = "proposal-expiry", 422, "expires outside the time that the rules give, or is said to have expired too early";
    ProposalDraft = "proposal-draft", 422, "what is sealed is not what was proposed";
    ApprovalMalformed = "approval-malformed", 422, "not an approval in the form that is signed";
    ApprovalOtherAction = "approval-other-action", 422, "the approval is for another action";
    ApprovalOtherLedger = "approval-other-ledger", 422, "the approval is for another ledger";
    ApprovalOtherProposal = "approval-other-proposal", 422, "the approval is for another proposal";
    ApprovalRole = "approval-role", 422, "the approval is in a role that the approver does not have";
    ApprovalSignature = "approval-signature", 422, "the approval's signature does not verify";
    ApproverUnknown = "approver-unknown", 422, "the rules name no such approver, or another key for it";
    ApproverTwice = "approver-twice", 409, "the approver has decided already";
    KeyChange = "key-change", 422, "not a change of keys that could be made";
    KeyReused = "key-reused", 409, "the key is, or was, the ledger's already";
    KeyProof = "key-proof", 422, "the new key does not prove itself for this change of keys";
    ApprovalOwn = "approval-own", 403, "the approver proposed or seals the change itself";

    // The transport and the daemon's state.
    MalformedHttp = "malformed-http", 400, "not an HTTP/1.1 request";
    HeaderTooLarge = "header-too-large", 431, "the request head is too large";
    RequestTimeout = "request-timeout", 408, "the request took too long to arrive";
    RequestTooLarge = "request-too-large", 413, "the request body is over the size limit";
    BodyIncomplete = "body-incomplete", 400, "the request body broke off";
    BadParameter = "bad-parameter", 400, "a path or query parameter is wrong";
    NotFound = "not-found", 404, "there is no such thing here";
    MethodNotAllowed = "method-not-allowed", 405, "the path does not take this method";
    CallerNotAllowed = "caller-not-allowed", 403, "this caller may not do that";
    Busy = "busy", 409, "only done while nothing else is going on";
    TooManyConnections = "too-many-connections", 503, "all connections are in use";
    QueueFull = "queue-full", 503, "the queue is full";
    RateLimited = "rate-limited", 429, "this caller appends faster than its rule lets it";
    MemoryBudget = "memory-budget", 503, "no room to take the request into memory";
    TokenUnavailable = "token-unavailable", 503, "the token cannot sign; nothing was recorded";
    OutcomeUnknown = "outcome-unknown", 503, "the entry may or may not be recorded: ask by its id";
    CheckpointPending = "checkpoint-pending", 503, "no checkpoint has the entry in it yet";
    ClockJumped = "clock-jumped", 503, "the clock jumped forward; an operator must look";
    ShuttingDown = "shutting-down", 503, "the daemon is stopping";
    StorageFull = "storage-full", 507, "the disk is below its watermark";
    Internal = "internal", 500, "a fault inside the daemon; its log says more";

    // Only a verifier says these.
    NotCanonical = "not-canonical", 0, "valid JSON, but not in canonical form";
    LineEnding = "line-ending", 0, "a line that does not end in exactly one line feed";
    SchemaVersion = "schema-version", 0, "a schema version that this program does not know";
    ActionHash = "action-hash", 0, "action_hash is not the hash of action_payload";
    EntryHashMismatch = "entry-hash", 0, "entry_hash is not the hash of the entry";
    Sequence = "sequence", 0, "a sequence number is missing, repeated or out of order";
    ChainBroken = "chain", 0, "prev_entry_hash is not the hash of the entry before";
    TimestampOrder = "timestamp-order", 0, "a timestamp is earlier than the one before";
    DuplicateEntryId = "duplicate-entry-id", 0, "an entry id occurs twice";
    Dependency = "dependency", 0, "a dependency is not an earlier entry";
    SignatureEncoding = "signature-encoding", 0, "hsm_signature is not hex of minimal DER with r and s in range";
    SignatureHighS = "signature-high-s", 0, "hsm_signature has S in the high half";
    SignatureInvalid = "signature", 0, "hsm_signature does not verify";
    SignatureAlgorithm = "signature-algorithm", 0, "a signature algorithm that this program does not know";
    SignatureMode = "signature-mode", 0, "the way of signing changes without an entry that says so";
    UnknownKey = "unknown-key", 0, "signed by a key that is not trusted";
    KeyRange = "key-range", 0, "signed by a key of the ledger that does not sign there";
    KeyActivation = "key-activation", 0, "a change of keys that is not completed at once, or a completion of none";
    KeyRevoked = "key-revoked", 0, "a checkpoint that the revocation of its key leaves untrusted";
    Genesis = "genesis", 0, "entry 0 is not a genesis, or a genesis is not entry 0";
    GenesisKey = "genesis-key", 0, "the genesis names another key than the trusted one";
    GenesisHash = "genesis-hash", 0, "the genesis is not the expected one";
    Origin = "origin", 0, "the origin is not the expected one";
    ReservedByClient = "reserved-by-client", 0, "something only the daemon may write stands in a client's entry";
    PeerMissing = "peer-missing", 0, "a client's entry without the kernel's word on its caller";
    CompositeScore = "composite-score", 0, "composite_score is not the weighted mean of the pillars";
    SafetyFloor = "safety-floor", 0, "safety_floor_met is not what the pillars say";
    ProofsValid = "proofs-valid", 0, "proofs_valid is not what the proofs say";
    ProvidedProofs = "provided-proofs", 0, "provided_proofs is not what the evidence says";
    RequiredProofs = "required-proofs", 0, "required_proofs lacks what the rules demand";
    RequiredApprovals = "required-approvals", 0, "required_approvals is lower than the rules demand";
    ReceivedApprovals = "received-approvals", 0, "received_approvals is not what the ledger holds";
    Quorum = "quorum", 0, "quorum_met is not what the approvals say";
    RulesInForce = "rules-in-force", 0, "an entry or statement names other rules than those in force";
    CallerRule = "caller-rule", 0, "peer names another caller than the rules do";
    ViolationReason = "violation-reason", 0, "a VIOLATION entry's reason is not what the attempt breaks";
    Manifest = "manifest", 0, "the manifest is malformed or disagrees with the entries";
    BundleFile = "bundle-file", 0, "a file of the bundle is missing, strange, or not what the manifest says";
    Empty = "empty", 0, "there is not a single entry";
    Note = "note", 0, "a checkpoint is not a well-formed signed note";
    NoteSignature = "note-signature", 0, "a checkpoint does not bear the trusted key's sound signature";
    CheckpointRoot = "checkpoint-root", 0, "a checkpoint is of another tree than the entries make";
    CheckpointOrder = "checkpoint-order", 0, "checkpoints do not grow in size";
    CheckpointMissing = "checkpoint-missing", 0, "the checkpoints are not those that the entries' signatures refer to";
    TreeProof = "tree-proof", 0, "a proof of the tree is missing, malformed or proves nothing";
    Receipt = "receipt", 0, "the receipt is malformed or is not the entry's";
    Truncated = "truncated", 0, "entries are missing at the end";
    Rollback = "rollback", 0, "the ledger is at an older state than the known checkpoint";
    Fork = "fork", 0, "the ledger has another history than the known checkpoint";
    KnownUnshown = "known-unshown", 0, "this range cannot show that the ledger extends the known checkpoint";
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_unique_and_in_kebab_case() {
        let mut seen = std::collections::HashSet::new();
        for code in Code::ALL {
            let text = code.as_str();
            assert!(seen.insert(text), "{text} twice");
            assert_eq!(Code::parse(text), Some(*code));
            assert!(text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
        }
    }
}
