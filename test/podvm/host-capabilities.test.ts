import {readFile} from 'node:fs/promises';
import test from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {hostSupport} from '../../src/podvm/host-capabilities.ts';

const emulating = await readFile(new URL('../fixtures/podvm/capabilities-s390x-tcg.xml', import.meta.url), 'utf8');

test('a host without KVM for s390x emulates, on the newest machine by its canonical name', t => {
	t.deepEqual(hostSupport(emulating), {
		domainType: 'qemu',
		machine: 's390-ccw-virtio-7.2',
		emulator: '/usr/bin/qemu-system-s390x',
		cpus: [],
	});
});

test('KVM is used if the host offers it', t => {
	const both = emulating.replaceAll("<domain type='qemu'/>", "<domain type='qemu'/><domain type='kvm'/>");
	t.deepEqual(hostSupport(both), {
		domainType: 'kvm',
		machine: 's390-ccw-virtio-7.2',
		emulator: '/usr/bin/qemu-system-s390x',
		cpus: [],
	});
});

test("a domain type's own emulator and machines come before those of the architecture", t => {
	const own = emulating.replace(
		/(s390x'>.*?)<domain type='qemu'\/>/s,
		`$1<domain type='qemu'/><domain type='kvm'>
		<emulator>/usr/libexec/qemu-kvm</emulator><machine canonical='s390-ccw-virtio-rhel9.4.0' maxCpus='248'>s390-ccw-virtio</machine></domain>`,
	);
	t.deepEqual(hostSupport(own), {
		domainType: 'kvm',
		machine: 's390-ccw-virtio-rhel9.4.0',
		emulator: '/usr/libexec/qemu-kvm',
		cpus: [],
	});
});

test('the CPUs are those of all NUMA nodes that libvirt lists', t => {
	const cell = (...ids: readonly number[]): string =>
		`<cell><cpus num='${ids.length}'>${ids.map(id => `<cpu id='${id}' socket_id='0'/>`).join('')}</cpus></cell>`;
	const host = emulating.replace(
		'</host>',
		`<topology><cells num='2'>${cell(4, 6)}${cell(0, 2)}</cells></topology></host>`,
	);
	t.deepEqual(hostSupport(host).cpus, [0, 2, 4, 6]);
});

test('the error for a host without s390x names what is missing', t => {
	for (const capabilities of [
		emulating.replaceAll('s390x', 'aarch64'),
		'<capabilities/>',
		emulating.replace('>s390-ccw-virtio<', '>other<'),
	]) {
		const error = t.throws(() => hostSupport(capabilities), {instanceOf: AdaptorError});
		t.is(error.code, 'failed-precondition');
		t.regex(error.message, /LIBVIRT_URI/);
	}
});

test('text that is not XML is an AdaptorError', t => {
	const error = t.throws(() => hostSupport('<a'), {instanceOf: AdaptorError});
	t.is(error.code, 'data-loss');
});
