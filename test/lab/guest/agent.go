// A useful part of kata's agent API, over real processes of the guest (kata-containers, src/libs/protocols/protos/agent.proto,
// health.proto, oci.proto; answers and error texts as src/agent/src/rpc.rs gives them). Containers have no root filesystem and no
// namespaces of their own: a container here is a name for processes.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	apiVersion   = "0.0.1"
	agentVersion = "3.4.0-lab"
)

// Spelled as the original spells them.
var (
	errNoContainer = errors.New("Invalid container id")
	errNoProcess   = errors.New("Invalid exec id")
)

type container struct {
	first     *process
	processes map[string]*process // by exec id; the first process has its container's
}

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

		// The interface that it was given, the routes that it was given.
		"UpdateInterface": echoFirstField,
		"UpdateRoutes":    echoFirstField,

		// What a shim may ask for in passing, and what there is nothing to do for.
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

// requestMessage is the name that a policy knows a method's request by.
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

// setPolicy evaluates no Rego: `default XRequest := false` refuses XRequest, and that is all it understands.
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

func (a *agent) createContainer(_ context.Context, request message) ([]byte, error) {
	id := request.text(1)
	spec, err := decodeMessage(request.bytes(6))
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.containers[id] != nil {
		return nil, fmt.Errorf("container %s exists already", id)
	}
	first, err := decodeProcess(spec.bytes(2))
	if err != nil {
		return nil, err
	}
	a.containers[id] = &container{first, map[string]*process{id: first}}
	return nil, nil
}

func (a *agent) startContainer(_ context.Context, request message) ([]byte, error) {
	p, err := a.find(request.text(1), "")
	if err != nil {
		return nil, err
	}
	return nil, p.start(a.reaper)
}

func (a *agent) execProcess(_ context.Context, request message) ([]byte, error) {
	containerID, execID := request.text(1), request.text(2)
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.containers[containerID]
	switch {
	case c == nil:
		return nil, errNoContainer
	case !c.first.isRunning():
		return nil, fmt.Errorf("container %s is not running", containerID)
	case execID == "":
		return nil, errors.New("the exec id is empty")
	case c.processes[execID] != nil:
		return nil, fmt.Errorf("exec id %s exists already", execID)
	}
	p, err := decodeProcess(request.bytes(4))
	if err != nil {
		return nil, err
	}
	if err := p.start(a.reaper); err != nil {
		p.close()
		return nil, err
	}
	c.processes[execID] = p
	return nil, nil
}

func (a *agent) signalProcess(_ context.Context, request message) ([]byte, error) {
	p, err := a.find(request.text(1), request.text(2))
	if err != nil {
		return nil, err
	}
	if err := p.signal(a.reaper, syscall.Signal(request.number(3))); err != nil && err != syscall.ESRCH {
		return nil, err
	}
	return nil, nil
}

// waitProcess may be asked again, unlike the original's: what has exited stays until its container is removed.
func (a *agent) waitProcess(ctx context.Context, request message) ([]byte, error) {
	p, err := a.find(request.text(1), request.text(2))
	if err != nil {
		return nil, err
	}
	select {
	case <-p.exited:
		var response encoder
		response.number(1, uint64(p.exitCode))
		return response, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (a *agent) removeContainer(ctx context.Context, request message) ([]byte, error) {
	id := request.text(1)
	a.mu.Lock()
	c := a.containers[id]
	var processes []*process
	if c != nil {
		processes = c.all()
	}
	a.mu.Unlock()
	if c == nil {
		return nil, errNoContainer
	}
	if seconds := request.number(2); seconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
		defer cancel()
	}
	if err := a.end(ctx, processes); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.containers, id)
	return nil, nil
}

func (c *container) all() []*process {
	var processes []*process
	for _, p := range c.processes {
		processes = append(processes, p)
	}
	return processes
}

// end kills what runs, waits for its end and closes all streams.
func (a *agent) end(ctx context.Context, processes []*process) error {
	for _, p := range processes {
		if p.signal(a.reaper, syscall.SIGKILL) == nil {
			select {
			case <-p.exited:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		p.close()
	}
	return nil
}

// find returns a container's process: its first one for an empty exec id.
func (a *agent) find(containerID, execID string) (*process, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.containers[containerID]
	if c == nil {
		return nil, errNoContainer
	}
	if execID == "" {
		return c.first, nil
	}
	if p := c.processes[execID]; p != nil {
		return p, nil
	}
	return nil, errNoProcess
}

// decodeProcess takes the command, the environment, the directory and the user of an OCI process, and leaves the rest of it.
func decodeProcess(wire []byte) (*process, error) {
	oci, err := decodeMessage(wire)
	if err != nil {
		return nil, err
	}
	user, err := decodeMessage(oci.bytes(3))
	if err != nil {
		return nil, err
	}
	spec := processSpec{
		terminal:    oci.number(1) != 0,
		uid:         uint32(user.number(1)),
		gid:         uint32(user.number(2)),
		arguments:   oci.texts(4),
		environment: oci.texts(5),
		directory:   oci.text(6),
	}
	if spec.directory == "" {
		spec.directory = "/"
	}
	return newProcess(spec)
}
