package rpc

import (
	"context"
	"errors"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// Users serves UserService. The verifier lets only admins call UserService.
type Users struct {
	watchwordv1.UnimplementedUserServiceServer
	Users *user.Users
}

// CreateUser serves UserService/CreateUser.
func (s *Users) CreateUser(ctx context.Context, req *watchwordv1.CreateUserRequest) (*watchwordv1.CreateUserResponse, error) {
	var r reading
	name := field(&r, "username", user.ParseName, req.GetUsername())
	kind := field(&r, "kind", accountKind, req.GetKind())
	roles := field(&r, "roles", user.ParseRoles, req.GetRoles())
	audiences := field(&r, "audiences", audiencesOf(kind), req.GetAudiences())
	delegatesTo := field(&r, "delegates_to", audiencesOf(kind), req.GetDelegatesTo())
	pw := field(&r, "password", passwordOf(kind), req.GetPassword())
	if r.err != nil {
		return nil, r.err
	}
	var row *store.User
	var err error
	if kind == store.KindService {
		row, err = s.Users.CreateService(ctx, callerOf(ctx), user.Service{Name: name, Roles: roles, Audiences: audiences, DelegatesTo: delegatesTo})
	} else {
		row, err = s.Users.Create(ctx, callerOf(ctx), name, roles, pw)
	}
	return &watchwordv1.CreateUserResponse{User: userMessage(row)}, nameField("username", weakField("password", err))
}

// accountKind checks the kind of an account, user or service account, in a request.
func accountKind(kind watchwordv1.UserKind) (store.UserKind, error) {
	switch kind {
	case watchwordv1.UserKind_USER_KIND_UNSPECIFIED, watchwordv1.UserKind_USER_KIND_USER:
		return store.KindUser, nil
	case watchwordv1.UserKind_USER_KIND_SERVICE:
		return store.KindService, nil
	}
	return 0, errors.New("unknown kind of an account")
}

// audiencesOf returns a function that checks the audiences of a new account of the kind.
func audiencesOf(kind store.UserKind) func([]string) (user.Audiences, error) {
	return func(names []string) (user.Audiences, error) {
		if kind == store.KindUser && len(names) > 0 {
			return nil, user.ErrNotService
		}
		return user.ParseAudiences(names)
	}
}

// passwordOf returns a function that checks the password of a new account of the kind.
func passwordOf(kind store.UserKind) func(string) (password.Password, error) {
	if kind == store.KindUser {
		return password.Parse
	}
	return func(text string) (none password.Password, err error) {
		if text != "" {
			err = user.ErrService
		}
		return none, err
	}
}

// GetUser serves UserService/GetUser.
func (s *Users) GetUser(ctx context.Context, req *watchwordv1.GetUserRequest) (*watchwordv1.GetUserResponse, error) {
	var r reading
	var row *store.User
	switch key := req.GetKey().(type) {
	case *watchwordv1.GetUserRequest_Id:
		if id := field(&r, "id", requiredID, key.Id); r.err == nil {
			row, r.err = s.Users.Get(ctx, id)
		}
	case *watchwordv1.GetUserRequest_Username:
		if name := field(&r, "username", user.ParseName, key.Username); r.err == nil {
			row, r.err = s.Users.GetByName(ctx, name)
		}
	default:
		r.err = invalidField{"id", errors.New("one of id and username is required")}
	}
	return &watchwordv1.GetUserResponse{User: userMessage(row)}, r.err
}

// ListUsers serves UserService/ListUsers.
func (s *Users) ListUsers(ctx context.Context, req *watchwordv1.ListUsersRequest) (*watchwordv1.ListUsersResponse, error) {
	var r reading
	var kind *store.UserKind
	if asked := req.GetKind(); asked != watchwordv1.UserKind_USER_KIND_UNSPECIFIED {
		kind = new(field(&r, "kind", accountKind, asked))
	}
	page := readPage(&r, req, "users", req.GetKind().String())
	if r.err != nil {
		return nil, r.err
	}
	rows, next, err := s.Users.List(ctx, kind, page.after, page.size)
	return &watchwordv1.ListUsersResponse{Users: messages(rows, userMessage), NextPageToken: page.token(next)}, err
}

// UpdateUser serves UserService/UpdateUser.
func (s *Users) UpdateUser(ctx context.Context, req *watchwordv1.UpdateUserRequest) (*watchwordv1.UpdateUserResponse, error) {
	var r reading
	id := field(&r, "user.id", requiredID, req.GetUser().GetId())
	change := readChange(&r, req)
	if r.err != nil {
		return nil, r.err
	}
	row, err := s.Users.Update(ctx, callerOf(ctx), id, change)
	err = addField("user.kind", user.ErrKind, nameField("user.username", err))
	audiences := "user.audiences"
	if change.Audiences == nil || len(*change.Audiences) == 0 {
		audiences = "user.delegates_to"
	}
	return &watchwordv1.UpdateUserResponse{User: userMessage(row)}, addField(audiences, user.ErrNotService, err)
}

// readChange reads the fields that the update mask names (AIP-134). Without a mask, readChange
// reads the fields that are set; with the mask "*", all fields. A client needs a mask to clear
// a field: without a mask, a cleared field looks like a field that is not set. A request that
// names no field is an error: the client has set a field to its zero value, such as disabled to
// false, and forgotten the mask. The kind of a user never changes; the client is allowed to
// name the kind that the user has.
func readChange(r *reading, req *watchwordv1.UpdateUserRequest) (change user.Change) {
	u := req.GetUser()
	if paths := req.GetUpdateMask().GetPaths(); slices.Contains(paths, "kind") || u.GetKind() != 0 && (len(paths) == 0 || paths[0] == "*") {
		change.Kind = new(field(r, "user.kind", accountKind, u.GetKind()))
	}
	for _, path := range field(r, "update_mask", maskPaths, req) {
		switch path {
		case "audiences":
			change.Audiences = new(field(r, "user.audiences", user.ParseAudiences, u.GetAudiences()))
		case "delegates_to":
			change.DelegatesTo = new(field(r, "user.delegates_to", user.ParseAudiences, u.GetDelegatesTo()))
		case "username":
			name := field(r, "user.username", user.ParseName, u.GetUsername())
			change.Name = &name
		case "roles":
			roles := field(r, "user.roles", user.ParseRoles, u.GetRoles())
			change.Roles = &roles
		case "disabled":
			disabled := u.GetDisabled()
			change.Disabled = &disabled
		}
	}
	return change
}

// maskPaths checks the field update_mask of a request, and returns the names of the fields to change.
// maskPaths refuses a name that is not one of the fields that a client can change.
func maskPaths(req *watchwordv1.UpdateUserRequest) ([]string, error) {
	all := []string{"username", "roles", "disabled", "audiences", "delegates_to"}
	paths := req.GetUpdateMask().GetPaths()
	switch {
	case len(paths) == 0:
		u := req.GetUser()
		set := map[string]bool{
			"username": u.GetUsername() != "", "roles": len(u.GetRoles()) > 0, "disabled": u.GetDisabled(),
			"audiences": len(u.GetAudiences()) > 0, "delegates_to": len(u.GetDelegatesTo()) > 0,
		}
		populated := slices.DeleteFunc(all, func(path string) bool { return !set[path] })
		if len(populated) == 0 {
			return nil, errors.New("names no field to change: to remove all roles or to enable a user, name roles or disabled")
		}
		return populated, nil
	case slices.Equal(paths, []string{"*"}):
		return all, nil
	case slices.Contains(paths, "*"):
		return nil, errors.New("must not name fields beside *")
	}
	for _, path := range paths {
		if !slices.Contains(all, path) && path != "kind" {
			return nil, errors.New("names an unknown field: username, roles, disabled, audiences and delegates_to can be changed")
		}
	}
	return paths, nil
}

// DeleteUser serves UserService/DeleteUser.
func (s *Users) DeleteUser(ctx context.Context, req *watchwordv1.DeleteUserRequest) (*watchwordv1.DeleteUserResponse, error) {
	var r reading
	id := field(&r, "id", requiredID, req.GetId())
	if r.err != nil {
		return nil, r.err
	}
	return &watchwordv1.DeleteUserResponse{}, s.Users.Delete(ctx, callerOf(ctx), id)
}

// SetPassword serves UserService/SetPassword.
func (s *Users) SetPassword(ctx context.Context, req *watchwordv1.SetPasswordRequest) (*watchwordv1.SetPasswordResponse, error) {
	var r reading
	id := field(&r, "id", requiredID, req.GetId())
	pw := field(&r, "password", password.Parse, req.GetPassword())
	if r.err != nil {
		return nil, r.err
	}
	row, err := s.Users.SetPassword(ctx, callerOf(ctx), id, pw)
	return &watchwordv1.SetPasswordResponse{User: userMessage(row)}, addField("id", user.ErrService, weakField("password", err))
}

// userMessage converts a user to a message without the password hash. For nil, userMessage
// returns nil, since handlers call userMessage before they look at the error.
func userMessage(row *store.User) *watchwordv1.User {
	if row == nil {
		return nil
	}
	kind := watchwordv1.UserKind_USER_KIND_USER
	if row.Kind == store.KindService {
		kind = watchwordv1.UserKind_USER_KIND_SERVICE
	}
	return &watchwordv1.User{
		Id: row.ID, Kind: kind, Username: row.Username, Roles: row.Roles, Disabled: row.Disabled,
		Audiences: row.Audiences, DelegatesTo: row.DelegatesTo,
		CreatedAt: timestamppb.New(row.CreatedAt), UpdatedAt: timestamppb.New(row.UpdatedAt),
	}
}
