// The calls of the agent API for standard input, output and terminals of processes, and for files.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

func (a *agent) readStdout(ctx context.Context, request message) ([]byte, error) {
	return a.read(ctx, request, func(p *process) *stream { return p.stdout })
}

func (a *agent) readStderr(ctx context.Context, request message) ([]byte, error) {
	return a.read(ctx, request, func(p *process) *stream { return p.stderr })
}

func (a *agent) read(ctx context.Context, request message, which func(*process) *stream) ([]byte, error) {
	p, err := a.find(request.text(1), request.text(2))
	if err != nil {
		return nil, err
	}
	data, err := which(p).read(ctx, int(request.number(3)))
	if errors.Is(err, io.EOF) {
		if p.terminal != nil {
			return nil, errors.New("eof")
		}
		return nil, errors.New("read meet eof") // the text of kata-agent
	}
	if err != nil {
		return nil, err
	}
	var response encoder
	response.message(1, data)
	return response, nil
}

func (a *agent) writeStdin(_ context.Context, request message) ([]byte, error) {
	p, err := a.find(request.text(1), request.text(2))
	if err != nil {
		return nil, err
	}
	n, err := p.stdin.Write(request.bytes(3))
	if err != nil {
		return nil, err
	}
	var response encoder
	response.number(1, uint64(n))
	return response, nil
}

func (a *agent) closeStdin(_ context.Context, request message) ([]byte, error) {
	p, err := a.find(request.text(1), request.text(2))
	if err != nil {
		return nil, status(codeInvalidArgument, "invalid argument: %v", err)
	}
	if p.terminal == nil {
		p.stdin.Close()
	}
	return nil, nil
}

func (a *agent) resize(_ context.Context, request message) ([]byte, error) {
	p, err := a.find(request.text(1), request.text(2))
	if err != nil {
		return nil, status(codeUnavailable, "invalid argument: %v", err)
	}
	if p.terminal == nil {
		return nil, status(codeUnavailable, "no tty")
	}
	return nil, resizeTerminal(p.terminal, uint16(request.number(3)), uint16(request.number(4)))
}

const copyRoot = "/run/kata-containers/"

// copyFile writes a part of a file beside its destination, and moves the file there when it has the announced size.
func (a *agent) copyFile(_ context.Context, request message) ([]byte, error) {
	path, size, mode, data := request.text(1), request.number(2), request.number(3), request.bytes(8)
	if filepath.Clean(path) != path || !strings.HasPrefix(path, copyRoot) {
		return nil, status(codeInvalidArgument, "%q is not below %s", path, copyRoot)
	}
	if err := os.MkdirAll(filepath.Dir(path), os.FileMode(request.number(4)&0o777|0o700)); err != nil {
		return nil, err
	}
	switch mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		return nil, os.MkdirAll(path, os.FileMode(mode&0o777))
	case syscall.S_IFLNK:
		os.Remove(path)
		return nil, os.Symlink(string(data), path)
	}
	partial := path + ".tmp"
	file, err := os.OpenFile(partial, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if _, err := file.WriteAt(data, int64(request.number(7))); err != nil {
		return nil, err
	}
	if info, err := file.Stat(); err != nil || uint64(info.Size()) != size {
		return nil, err
	}
	if err := file.Chown(int(int32(request.number(5))), int(int32(request.number(6)))); err != nil {
		return nil, err
	}
	if err := file.Chmod(os.FileMode(mode & 0o777)); err != nil {
		return nil, err
	}
	return nil, os.Rename(partial, path)
}
