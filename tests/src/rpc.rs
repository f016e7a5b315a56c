//! Every rpc of the contract by its request's type, so that one function calls any of them.

use proto::directory::v1 as directory;
use proto::eventlog::v1 as eventlog;
use proto::identity::v1 as identity;
use proto::issuer::v1 as issuer;
use proto::namespace::v1 as namespace;
use tonic::codegen::http::uri::PathAndQuery;

use crate::world::Service;

/// A request of a unary rpc.
pub trait Rpc: prost::Message + std::fmt::Debug + Clone + Default + 'static {
    /// What it is answered with.
    type Answer: prost::Message + std::fmt::Debug + Clone + PartialEq + Default + 'static;
    /// Who serves it.
    const SERVICE: Service;
    /// `/tharsis.namespace.v1.GroupService/GetGroup`.
    const PATH: &'static str;

    /// The path for the client.
    #[must_use]
    fn path() -> PathAndQuery {
        PathAndQuery::from_static(Self::PATH)
    }
}

macro_rules! rpcs {
    ($($service:ident $path:literal $package:ident $request:ident $answer:ident;)*) => { $(
        impl Rpc for $package::$request {
            type Answer = $package::$answer;
            const SERVICE: Service = Service::$service;
            const PATH: &'static str = $path;
        }
    )* };
}

rpcs! {
    Namespace "/tharsis.namespace.v1.GroupService/CreateGroup" namespace CreateGroupRequest CreateGroupResponse;
    Namespace "/tharsis.namespace.v1.GroupService/GetGroup" namespace GetGroupRequest GetGroupResponse;
    Namespace "/tharsis.namespace.v1.GroupService/UpdateGroup" namespace UpdateGroupRequest UpdateGroupResponse;
    Namespace "/tharsis.namespace.v1.GroupService/MoveGroup" namespace MoveGroupRequest MoveGroupResponse;
    Namespace "/tharsis.namespace.v1.GroupService/DeleteGroup" namespace DeleteGroupRequest DeleteGroupResponse;
    Namespace "/tharsis.namespace.v1.WorkspaceService/CreateWorkspace" namespace CreateWorkspaceRequest CreateWorkspaceResponse;
    Namespace "/tharsis.namespace.v1.WorkspaceService/GetWorkspace" namespace GetWorkspaceRequest GetWorkspaceResponse;
    Namespace "/tharsis.namespace.v1.WorkspaceService/UpdateWorkspace" namespace UpdateWorkspaceRequest UpdateWorkspaceResponse;
    Namespace "/tharsis.namespace.v1.WorkspaceService/MoveWorkspace" namespace MoveWorkspaceRequest MoveWorkspaceResponse;
    Namespace "/tharsis.namespace.v1.WorkspaceService/DeleteWorkspace" namespace DeleteWorkspaceRequest DeleteWorkspaceResponse;
    Namespace "/tharsis.namespace.v1.MembershipService/CreateMembership" namespace CreateMembershipRequest CreateMembershipResponse;
    Namespace "/tharsis.namespace.v1.MembershipService/GetMembership" namespace GetMembershipRequest GetMembershipResponse;
    Namespace "/tharsis.namespace.v1.MembershipService/UpdateMembership" namespace UpdateMembershipRequest UpdateMembershipResponse;
    Namespace "/tharsis.namespace.v1.MembershipService/DeleteMembership" namespace DeleteMembershipRequest DeleteMembershipResponse;
    Namespace "/tharsis.namespace.v1.LimitService/ListLimits" namespace ListLimitsRequest ListLimitsResponse;
    Namespace "/tharsis.namespace.v1.LimitService/UpdateLimit" namespace UpdateLimitRequest UpdateLimitResponse;
    Namespace "/tharsis.namespace.v1.MembershipService/GetAccess" namespace GetAccessRequest GetAccessResponse;
    Namespace "/tharsis.namespace.v1.TeamService/CreateTeam" namespace CreateTeamRequest CreateTeamResponse;
    Namespace "/tharsis.namespace.v1.TeamService/GetTeam" namespace GetTeamRequest GetTeamResponse;
    Namespace "/tharsis.namespace.v1.TeamService/UpdateTeam" namespace UpdateTeamRequest UpdateTeamResponse;
    Namespace "/tharsis.namespace.v1.TeamService/DeleteTeam" namespace DeleteTeamRequest DeleteTeamResponse;
    Namespace "/tharsis.namespace.v1.TeamService/AddTeamMember" namespace AddTeamMemberRequest AddTeamMemberResponse;
    Namespace "/tharsis.namespace.v1.TeamService/RemoveTeamMember" namespace RemoveTeamMemberRequest RemoveTeamMemberResponse;
    Identity "/tharsis.identity.v1.ManagedIdentityService/CreateManagedIdentity" identity CreateManagedIdentityRequest CreateManagedIdentityResponse;
    Identity "/tharsis.identity.v1.ManagedIdentityService/GetManagedIdentity" identity GetManagedIdentityRequest GetManagedIdentityResponse;
    Identity "/tharsis.identity.v1.ManagedIdentityService/GetSetupInstructions" identity GetSetupInstructionsRequest GetSetupInstructionsResponse;
    Identity "/tharsis.identity.v1.AccessRuleService/CreateAccessRule" identity CreateAccessRuleRequest CreateAccessRuleResponse;
    Identity "/tharsis.identity.v1.AccessRuleService/GetAccessRule" identity GetAccessRuleRequest GetAccessRuleResponse;
    Identity "/tharsis.identity.v1.AccessRuleService/UpdateAccessRule" identity UpdateAccessRuleRequest UpdateAccessRuleResponse;
    Identity "/tharsis.identity.v1.AccessRuleService/DeleteAccessRule" identity DeleteAccessRuleRequest DeleteAccessRuleResponse;
    Identity "/tharsis.identity.v1.AccessRuleService/ListAccessRules" identity ListAccessRulesRequest ListAccessRulesResponse;
    Identity "/tharsis.identity.v1.MaskService/CreateMask" identity CreateMaskRequest CreateMaskResponse;
    Identity "/tharsis.identity.v1.MaskService/GetMask" identity GetMaskRequest GetMaskResponse;
    Identity "/tharsis.identity.v1.MaskService/DeleteMask" identity DeleteMaskRequest DeleteMaskResponse;
    Identity "/tharsis.identity.v1.MaskService/ListMasks" identity ListMasksRequest ListMasksResponse;
    Identity "/tharsis.identity.v1.ManagedIdentityService/UpdateManagedIdentity" identity UpdateManagedIdentityRequest UpdateManagedIdentityResponse;
    Identity "/tharsis.identity.v1.ManagedIdentityService/MoveManagedIdentity" identity MoveManagedIdentityRequest MoveManagedIdentityResponse;
    Identity "/tharsis.identity.v1.ManagedIdentityService/DeleteManagedIdentity" identity DeleteManagedIdentityRequest DeleteManagedIdentityResponse;
    Identity "/tharsis.identity.v1.ManagedIdentityService/CreateManagedIdentityAlias" identity CreateManagedIdentityAliasRequest CreateManagedIdentityAliasResponse;
    Identity "/tharsis.identity.v1.ManagedIdentityService/DeleteManagedIdentityAlias" identity DeleteManagedIdentityAliasRequest DeleteManagedIdentityAliasResponse;
    Identity "/tharsis.identity.v1.ManagedIdentityService/AssignManagedIdentity" identity AssignManagedIdentityRequest AssignManagedIdentityResponse;
    Identity "/tharsis.identity.v1.ManagedIdentityService/UnassignManagedIdentity" identity UnassignManagedIdentityRequest UnassignManagedIdentityResponse;
    Identity "/tharsis.identity.v1.ServiceAccountService/CreateServiceAccount" identity CreateServiceAccountRequest CreateServiceAccountResponse;
    Identity "/tharsis.identity.v1.ServiceAccountService/GetServiceAccount" identity GetServiceAccountRequest GetServiceAccountResponse;
    Identity "/tharsis.identity.v1.ServiceAccountService/UpdateServiceAccount" identity UpdateServiceAccountRequest UpdateServiceAccountResponse;
    Identity "/tharsis.identity.v1.ServiceAccountService/DeleteServiceAccount" identity DeleteServiceAccountRequest DeleteServiceAccountResponse;
    Issuer "/tharsis.issuer.v1.JobService/OpenJob" issuer OpenJobRequest OpenJobResponse;
    Issuer "/tharsis.issuer.v1.JobService/GetJob" issuer GetJobRequest GetJobResponse;
    Issuer "/tharsis.issuer.v1.CredentialService/IssueCredential" issuer IssueCredentialRequest IssueCredentialResponse;
    Issuer "/tharsis.issuer.v1.CredentialService/ListJobManagedIdentities" issuer ListJobManagedIdentitiesRequest ListJobManagedIdentitiesResponse;
    Issuer "/tharsis.issuer.v1.JobService/HeartbeatJob" issuer HeartbeatJobRequest HeartbeatJobResponse;
    Issuer "/tharsis.issuer.v1.JobService/FinishJob" issuer FinishJobRequest FinishJobResponse;
    Issuer "/tharsis.issuer.v1.JobService/CancelJob" issuer CancelJobRequest CancelJobResponse;
    Issuer "/tharsis.issuer.v1.CredentialService/IssueCredentials" issuer IssueCredentialsRequest IssueCredentialsResponse;
    Issuer "/tharsis.issuer.v1.CredentialService/ExplainCredential" issuer ExplainCredentialRequest ExplainCredentialResponse;
    Issuer "/tharsis.issuer.v1.SigningKeyService/GetSigningKey" issuer GetSigningKeyRequest GetSigningKeyResponse;
    Issuer "/tharsis.issuer.v1.SigningKeyService/ListSigningKeys" issuer ListSigningKeysRequest ListSigningKeysResponse;
    Issuer "/tharsis.issuer.v1.SigningKeyService/RotateSigningKey" issuer RotateSigningKeyRequest RotateSigningKeyResponse;
    Issuer "/tharsis.issuer.v1.SigningKeyService/RevokeSigningKey" issuer RevokeSigningKeyRequest RevokeSigningKeyResponse;
    Issuer "/tharsis.issuer.v1.SigningKeyService/ListLiveTokens" issuer ListLiveTokensRequest ListLiveTokensResponse;
    Issuer "/tharsis.issuer.v1.TokenService/ExchangeToken" issuer ExchangeTokenRequest ExchangeTokenResponse;
    Projector "/tharsis.directory.v1.DirectoryService/ListChildren" directory ListChildrenRequest ListChildrenResponse;
    Projector "/tharsis.directory.v1.DirectoryService/ListManagedIdentities" directory ListManagedIdentitiesRequest ListManagedIdentitiesResponse;
    Projector "/tharsis.directory.v1.DirectoryService/ListWorkspaceManagedIdentities" directory ListWorkspaceManagedIdentitiesRequest ListWorkspaceManagedIdentitiesResponse;
    Projector "/tharsis.directory.v1.DirectoryService/ListManagedIdentityWorkspaces" directory ListManagedIdentityWorkspacesRequest ListManagedIdentityWorkspacesResponse;
    Projector "/tharsis.directory.v1.DirectoryService/ListManagedIdentityAliases" directory ListManagedIdentityAliasesRequest ListManagedIdentityAliasesResponse;
    Projector "/tharsis.directory.v1.DirectoryService/SearchNamespaces" directory SearchNamespacesRequest SearchNamespacesResponse;
    Projector "/tharsis.directory.v1.DirectoryService/SearchManagedIdentities" directory SearchManagedIdentitiesRequest SearchManagedIdentitiesResponse;
    Projector "/tharsis.directory.v1.DirectoryService/ListMemberships" directory ListMembershipsRequest ListMembershipsResponse;
    Projector "/tharsis.directory.v1.DirectoryService/ListPrincipalMemberships" directory ListPrincipalMembershipsRequest ListPrincipalMembershipsResponse;
    Projector "/tharsis.directory.v1.DirectoryService/ListTeams" directory ListTeamsRequest ListTeamsResponse;
    Projector "/tharsis.directory.v1.DirectoryService/ListTeamMembers" directory ListTeamMembersRequest ListTeamMembersResponse;
    Projector "/tharsis.directory.v1.DirectoryService/ListServiceAccounts" directory ListServiceAccountsRequest ListServiceAccountsResponse;
    Projector "/tharsis.directory.v1.AuditService/ListJobs" directory ListJobsRequest ListJobsResponse;
    Projector "/tharsis.directory.v1.AuditService/ListCredentials" directory ListCredentialsRequest ListCredentialsResponse;
    Projector "/tharsis.directory.v1.AuditService/ListActivities" directory ListActivitiesRequest ListActivitiesResponse;
    // Served by others too; these are the ones that tests ask.
    Namespace "/tharsis.eventlog.v1.EventLogService/GetHead" eventlog GetHeadRequest GetHeadResponse;
    Projector "/tharsis.eventlog.v1.ConsistencyService/Await" eventlog AwaitRequest AwaitResponse;
}
