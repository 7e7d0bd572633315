// The domain as text: against files written by hand, against libvirt's own schema, and against hostile names.
import {mkdtemp, readFile, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import fc from 'fast-check';
import {AdaptorError} from '../../src/core/errors.ts';
import {domainXml, type DomainSpec} from '../../src/podvm/domain-xml.ts';
import {readMetadata, type PodVmMetadata} from '../../src/podvm/metadata.ts';
import {child, readXml} from '../../src/libvirt/xml.ts';
import {run} from './run.ts';

const metadata: PodVmMetadata = {
	cluster: 'cluster',
	node: 'node-1',
	podsDir: {fingerprint: '7f3a9c0b', path: '/run/peerpod/pods'},
	sandboxId: '0123456789abcdef',
	pod: {name: 'web', namespace: 'shop', uid: '8d1c9b3e-0d4a-4b8e-9f55-0a8c7e1d2b3c'},
	vni: 555_001,
	createdAt: new Date('2026-01-02T03:04:05.678Z'),
	nonce: '5f2e',
	pool: 'default',
	poolDirectory: '/var/lib/libvirt/images',
	baseImage: 'podvm-base.qcow2',
	rootVolume: 'podvm-web-01234567-root.qcow2',
	cidataVolume: 'podvm-web-01234567-cidata.iso',
};

const onKvm: DomainSpec = {
	name: 'podvm-web-01234567',
	uuid: 'f88767e8-cd50-80a5-88a3-cb2003806a00',
	mac: '52:c7:74:ab:53:00',
	vcpus: 2,
	cpuset: '0-3,^2',
	memoryMib: 8192,
	network: 'default',
	host: {domainType: 'kvm', machine: 's390-ccw-virtio-8.2', emulator: '/usr/libexec/qemu-kvm', cpus: []},
	launchSecurity: 's390-pv',
	metadata,
	protection: {
		filter: {name: 'caa-podvm-dhcp-1', bootName: 'caa-podvm-boot-dhcp-1', missing: [], dhcpServer: '192.168.122.1'},
		isolation: 'on',
	},
};

/** As earlier versions wrote it. */
const {podsDir: _podsDir, poolDirectory: _poolDirectory, ...unmarked} = metadata;
const absent = {absent: 'off', reason: 'LIBVIRT_NET_FILTER=off', remedy: 'Set it.'} as const;
const {cpuset: _cpuset, launchSecurity: _launchSecurity, ...plain} = onKvm;
const emulated: DomainSpec = {
	...plain,
	host: {domainType: 'qemu', machine: 's390-ccw-virtio-7.2', emulator: '/usr/bin/qemu-system-s390x', cpus: []},
	protection: {filter: absent, isolation: absent},
	metadata: {...unmarked, pod: {name: 'web', namespace: 'shop'}},
};

async function fixture(name: string): Promise<string> {
	return (await readFile(new URL(`../fixtures/podvm/${name}`, import.meta.url), 'utf8')).trimEnd();
}

/** Fails when virt-xml-validate (Debian: libvirt-clients) is missing. */
async function isValid(t: ExecutionContext, ...documents: readonly string[]): Promise<void> {
	const directory = await mkdtemp(join(tmpdir(), 'caat-domain-xml-'));
	t.teardown(async () => rm(directory, {recursive: true}));
	await Promise.all(
		documents.map(async (document, index) => {
			const path = join(directory, `${String(index)}.xml`);
			await writeFile(path, document);
			await run('virt-xml-validate', [path, 'domain']);
		}),
	);
}

test('a KVM domain with all options matches the hand-written XML', async t => {
	t.is(domainXml(onKvm), await fixture('domain-kvm.xml'));
});

test('an emulated domain of one CPU could have a second one; under KVM it could not', async t => {
	t.regex(domainXml({...emulated, vcpus: 1}), /<vcpu placement="static" current="1">2<\/vcpu>/v);
	t.regex(domainXml({...onKvm, vcpus: 1}), /<vcpu placement="static" cpuset="0-3,\^2">1<\/vcpu>/v);
	await isValid(t, domainXml({...emulated, vcpus: 1}));
});

test('an emulated domain matches the hand-written XML', async t => {
	t.is(domainXml(emulated), await fixture('domain-qemu.xml'));
});

test('both are valid under the schema of libvirt, and the validator refuses an invalid document', async t => {
	await isValid(t, domainXml(onKvm), domainXml(emulated));
	await t.throwsAsync(isValid(t, domainXml(emulated).replace('<on_crash>destroy', '<on_crash>explode')), {
		message: /virt-xml-validate ended/,
	});
});

test('what is written into the metadata is read back', t => {
	t.deepEqual(readMetadata(readXml(domainXml(onKvm))), metadata);
	t.deepEqual(readMetadata(readXml(domainXml(emulated))), emulated.metadata);
});

test('metadata of an earlier version without PODS_DIR and pool directory can be read', t => {
	const earlier = domainXml(onKvm).replaceAll(/ (?:pods-dir|pods-dir-id|directory)="[^"]*"/g, '');
	t.deepEqual(readMetadata(readXml(earlier)), unmarked);
	t.deepEqual(readMetadata(readXml(domainXml(onKvm).replace(/ pods-dir="[^"]*"/, ''))), {
		...metadata,
		podsDir: {fingerprint: '7f3a9c0b', path: ''},
	});
});

test('foreign or missing metadata is not accepted as metadata of this program', t => {
	t.is(readMetadata(readXml('<domain/>')), undefined);
	t.is(readMetadata(readXml('<domain><metadata/></domain>')), undefined);
	t.is(readMetadata(readXml(domainXml(onKvm).replace('pod-vm:1', 'pod-vm:2'))), undefined);
	t.is(
		readMetadata(
			readXml(
				domainXml(onKvm)
					.replace('<metadata>', '<metadata xmlns:podvm="urn:x">')
					.replace(/ xmlns:podvm="urn:cloud[^"]*"/, ''),
			),
		),
		undefined,
	);
});

test('incomplete or nonsensical metadata of ours is an error, not a guess', t => {
	for (const field of [
		'sandbox-id',
		'vni',
		'created-at',
		'cluster',
		'node',
		'name',
		'namespace',
		'pool',
		'root',
		'cidata',
		'base',
	]) {
		const broken = domainXml(onKvm).replace(/<metadata>.*<\/metadata>/s, entry =>
			entry.replace(new RegExp(` ${field}="[^"]*"`), ''),
		);
		const error = t.throws(() => readMetadata(readXml(broken)), {instanceOf: AdaptorError}, field);
		t.is(error.code, 'data-loss');
	}

	t.throws(() => readMetadata(readXml(domainXml(onKvm).replace('vni="555001"', 'vni="many"'))), {
		instanceOf: AdaptorError,
	});
	t.throws(() => readMetadata(readXml(domainXml(onKvm).replace('2026-01-02T', 'yesterday'))), {
		instanceOf: AdaptorError,
	});
});

const hostile = [
	'</metadata><devices/>',
	'<![CDATA[x]]>',
	']]>',
	'&amp;',
	'&evil;',
	'&',
	'& ',
	'"><evil/>',
	"'",
	'<!--',
	'--',
	'<?xml?>',
	'ä€😀',
	'%s',
	'${x}',
	'a  b',
	'\u00A0x',
];

test('any name survives a round trip or is refused clearly, and none adds an element', async t => {
	const elements = (xml: string): number => [...xml.matchAll(/<[A-Za-z]/g)].length;
	const expected = elements(domainXml(onKvm));
	const accepted: string[] = [];
	const text = fc.oneof(
		fc.string({unit: 'binary', maxLength: 30}),
		fc.array(fc.constantFrom(...hostile), {maxLength: 4}).map(parts => parts.join('')),
		fc.string({maxLength: 30}),
	);
	fc.assert(
		fc.property(text, text, text, text, (name, namespace, sandboxId, pool) => {
			const spec = {...onKvm, metadata: {...metadata, pod: {name, namespace}, sandboxId, pool}};
			let xml;
			try {
				xml = domainXml(spec);
			} catch (error) {
				t.true(error instanceof AdaptorError && error.code === 'invalid-argument');
				t.regex(
					[name, namespace, sandboxId, pool].join('|'),
					/[\p{Cc}\p{Zl}\p{Zp}\p{Noncharacter_Code_Point}\uFEFF]|&#|^\s|\s$|\s\||\|\s/u,
					'refused without need',
				);
				return;
			}

			const read = readXml(xml);
			t.is(elements(xml), expected);
			t.deepEqual(readMetadata(read), spec.metadata);
			t.is(child(read, 'devices', 'disk', 'source')?.attributes['pool'], pool);
			accepted.push(xml);
		}),
		{numRuns: 300},
	);
	t.true(accepted.length > 30);
	// The schema has its own idea of pools' names; for what stands in the metadata it asks only that it is XML.
	const name = hostile.join('').trim();
	await isValid(
		t,
		domainXml({...onKvm, metadata: {...metadata, pod: {name, namespace: name}}}),
		...accepted.slice(0, 5).map(xml => xml.replaceAll(/ pool="[^"]*"/g, ' pool="default"')),
	);
});
