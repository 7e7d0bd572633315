// The parts of the agent API of kata that the lab needs, over real processes of the guest (kata-containers,
// src/libs/protocols/protos/agent.proto, health.proto, oci.proto; answers and error texts as in src/agent/src/rpc.rs).
// Containers have no root filesystem and no namespaces: a container is a name for processes.
package main

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
)

const (
	apiVersion   = "0.0.1"
	agentVersion = "3.4.0-lab"
)

type agent struct {
	reaper *reaper

	mu         sync.Mutex
	sandboxID  string
	containers map[string]*container
	denied     map[string]bool // request messages that the policy refuses
}

func newAgent(r *reaper) *agent {
	return &agent{reaper: r, containers: map[string]*container{}, denied: map[string]bool{}}
}

func (a *agent) services() services {
	methods := map[string]method{
		"CreateSandbox":   a.createSandbox,
		"DestroySandbox":  a.destroySandbox,
		"GetGuestDetails": a.guestDetails,
		"GetMetrics":      a.metrics,
		"GetOOMEvent":     waitForever,
		"SetPolicy":       a.setPolicy,

		"CreateContainer": a.createContainer,
		"StartContainer":  a.startContainer,
		"RemoveContainer": a.removeContainer,
		"ExecProcess":     a.execProcess,
		"SignalProcess":   a.signalProcess,
		"WaitProcess":     a.waitProcess,

		"ReadStdout":   a.readStdout,
		"ReadStderr":   a.readStderr,
		"WriteStdin":   a.writeStdin,
		"CloseStdin":   a.closeStdin,
		"TtyWinResize": a.resize,
		"CopyFile":     a.copyFile,

		// Answers with the given interface, or the given routes.
		"UpdateInterface": echoFirstField,
		"UpdateRoutes":    echoFirstField,

		// Calls of a shim that need no work here.
		"AddARPNeighbors":                nothing,
		"ListInterfaces":                 nothing,
		"ListRoutes":                     nothing,
		"OnlineCPUMem":                   nothing,
		"RemoveStaleVirtiofsShareMounts": nothing,
		"ReseedRandomDev":                nothing,
		"SetGuestDateTime":               nothing,
		"StatsContainer":                 nothing,
		"UpdateContainer":                nothing,
		"UpdateEphemeralMounts":          nothing,
	}
	for name, m := range methods {
		methods[name] = a.underPolicy(requestMessage(name), m)
	}
	return services{
		"grpc.AgentService": methods,
		"grpc.Health":       {"Check": check, "Version": version},
	}
}

// requestMessage is the name of the request of a method in a policy.
func requestMessage(method string) string {
	switch method {
	case "ReadStdout", "ReadStderr":
		return "ReadStreamRequest"
	case "WriteStdin":
		return "WriteStreamRequest"
	case "GetGuestDetails":
		return "GuestDetailsRequest"
	}
	return method + "Request"
}

func (a *agent) underPolicy(name string, m method) method {
	return func(ctx context.Context, request message) ([]byte, error) {
		a.mu.Lock()
		denied := a.denied[name]
		a.mu.Unlock()
		if denied {
			return nil, status(codePermissionDenied, "%s is blocked by policy", name)
		}
		return m(ctx, request)
	}
}

var policyDefault = regexp.MustCompile(`(?m)^\s*default\s+(\w+)\s*:?=\s*(true|false)\s*$`)

// setPolicy does not evaluate Rego: it only supports `default XRequest := false`, which refuses XRequest.
func (a *agent) setPolicy(_ context.Context, request message) ([]byte, error) {
	denied := map[string]bool{}
	for _, match := range policyDefault.FindAllStringSubmatch(request.text(1), -1) {
		denied[match[1]] = match[2] == "false"
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.denied = denied
	return nil, nil
}

func check(context.Context, message) ([]byte, error) {
	var response encoder
	response.number(1, 1) // SERVING
	return response, nil
}

func version(context.Context, message) ([]byte, error) {
	var response encoder
	response.text(1, apiVersion)
	response.text(2, agentVersion)
	return response, nil
}

func nothing(context.Context, message) ([]byte, error) { return nil, nil }

func waitForever(ctx context.Context, _ message) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func echoFirstField(_ context.Context, request message) ([]byte, error) {
	return request.bytes(1), nil
}

func (a *agent) guestDetails(context.Context, message) ([]byte, error) {
	var details, response encoder
	details.text(1, agentVersion)
	details.number(2, 1) // this agent is process 1
	response.message(2, details)
	return response, nil
}

func (a *agent) metrics(context.Context, message) ([]byte, error) {
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return nil, err
	}
	seconds, _, _ := strings.Cut(string(uptime), " ")
	var response encoder
	response.text(1, fmt.Sprintf("# TYPE kata_guest_uptime_seconds gauge\nkata_guest_uptime_seconds %s\n", seconds))
	return response, nil
}

func (a *agent) createSandbox(_ context.Context, request message) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sandboxID != "" {
		return nil, fmt.Errorf("sandbox %s exists already", a.sandboxID)
	}
	a.sandboxID = request.text(5)
	console("sandbox %s created", a.sandboxID)
	return nil, nil
}

func (a *agent) destroySandbox(ctx context.Context, _ message) ([]byte, error) {
	a.mu.Lock()
	var processes []*process
	for _, c := range a.containers {
		processes = append(processes, c.all()...)
	}
	console("sandbox %s destroyed", a.sandboxID)
	a.sandboxID, a.containers, a.denied = "", map[string]*container{}, map[string]bool{}
	a.mu.Unlock()
	return nil, a.end(ctx, processes)
}
