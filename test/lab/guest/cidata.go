// The cloud-init disk: found by its label, mounted read-only by the kernel, and parsed strictly.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const cidataMount = "/media/cidata"

// The paths that pod VM images accept in user-data (cloud-api-adaptor, process-user-data).
var allowedPaths = map[string]bool{
	"/run/peerpod/apf.json":             true,
	"/run/peerpod/daemon.json":          true,
	"/run/peerpod/auth.json":            true,
	"/run/peerpod/initdata":             true,
	"/run/peerpod/scratch-space.marker": true,
	"/run/peerpod/aa.toml":              true,
	"/run/peerpod/cdh.toml":             true,
}

type seed struct {
	hostname string
	files    []writeFile
}

// readCidata waits for the disk, because it may be plugged late.
func readCidata(patience time.Duration) (seed, error) {
	deadline := time.Now().Add(patience)
	device, err := findDisk("cidata")
	for ; errors.Is(err, os.ErrNotExist) && time.Now().Before(deadline); device, err = findDisk("cidata") {
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		return seed{}, err
	}
	if err := os.MkdirAll(cidataMount, 0o755); err != nil {
		return seed{}, err
	}
	if err := syscall.Mount(device, cidataMount, "iso9660", syscall.MS_RDONLY|syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return seed{}, fmt.Errorf("mount %s as iso9660: %w", device, err)
	}
	defer syscall.Unmount(cidataMount, 0)

	userData, err := os.ReadFile(filepath.Join(cidataMount, "user-data"))
	if err != nil {
		return seed{}, err
	}
	files, err := parseCloudConfig(string(userData))
	if err != nil {
		return seed{}, fmt.Errorf("user-data: %w", err)
	}
	for _, file := range files {
		if !allowedPaths[file.path] {
			return seed{}, fmt.Errorf("user-data: path %q is not allowed", file.path)
		}
	}
	if _, err := os.Stat(filepath.Join(cidataMount, "vendor-data")); err != nil {
		return seed{}, err
	}
	metaData, err := os.ReadFile(filepath.Join(cidataMount, "meta-data"))
	if err != nil {
		return seed{}, err
	}
	hostname, err := parseHostname(string(metaData))
	if err != nil {
		return seed{}, fmt.Errorf("meta-data: %w", err)
	}
	return seed{hostname: hostname, files: files}, syscall.Sethostname([]byte(hostname))
}

func (s seed) writeFiles() error {
	for _, file := range s.files {
		if err := os.MkdirAll(filepath.Dir(file.path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file.path, []byte(file.content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// findDisk searches the virtio disks for an ISO 9660 volume label: there is no udev here, which would create
// /dev/disk/by-label.
func findDisk(label string) (string, error) {
	devices, err := filepath.Glob("/dev/vd*")
	if err != nil {
		return "", err
	}
	for _, device := range devices {
		found, err := isoLabel(device)
		if err == nil && found == label {
			return device, nil
		}
	}
	return "", fmt.Errorf("no disk is labelled %q among %v: %w", label, devices, os.ErrNotExist)
}

// isoLabel reads the volume identifier of the primary volume descriptor (ECMA-119, 8.4).
func isoLabel(device string) (string, error) {
	file, err := os.Open(device)
	if err != nil {
		return "", err
	}
	defer file.Close()
	descriptor := make([]byte, 72)
	if _, err := file.ReadAt(descriptor, 16*2048); err != nil {
		return "", err
	}
	if descriptor[0] != 1 || string(descriptor[1:6]) != "CD001" {
		return "", errors.New("not an ISO 9660 volume")
	}
	return strings.TrimRight(string(descriptor[40:72]), " "), nil
}
