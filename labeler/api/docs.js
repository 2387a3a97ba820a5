// Draws openapi.json. Everything is put in as text.
'use strict';

const make = (name, text = '', className = '') => {
  const element = document.createElement(name);
  element.textContent = text;
  if (className) element.className = className;
  return element;
};

const nameOf = schema => schema.$ref.split('/').pop();

// A schema in a few words: "integer 1 to 9 | null", "list of Task".
const describe = schema => {
  if (!schema) return '';
  if (schema.$ref) return nameOf(schema);
  if (schema.anyOf) return schema.anyOf.map(describe).join(' | ');
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map(value => JSON.stringify(value)).join(' | ');
  if (schema.type === 'array') return `list of ${describe(schema.items) || 'anything'}`;
  const low = schema.minimum ?? schema.exclusiveMinimum, high = schema.maximum;
  // 2**63 is the database's limit, which tells a reader nothing
  const range = low === undefined ? '' : high === undefined || high > 1e15 ? ` from ${low}` : ` ${low} to ${high}`;
  const length = schema.maxLength ? ` of at most ${schema.maxLength} characters` : '';
  return (schema.type || 'anything') + range + length;
};

const fields = (schema, required = []) => Object.entries(schema.properties || {}).map(([name, value]) =>
  `  ${name}${required.includes(name) ? '' : ' (optional)'}: ${describe(value)}`).join('\n');

const bodyText = (description, schema) => {
  const found = schema && schema.$ref ? description.components.schemas[nameOf(schema)] : schema;
  if (!found || !found.properties) return describe(schema);
  const about = found.description ? `${found.description}\n` : '';
  return `${about}${fields(found, found.required)}`;
};

const draw = (description, method, path, operation) => {
  const details = make('details');
  const summary = make('summary');
  summary.append(make('span', method.toUpperCase(), 'method'), make('code', path), make('span', ` ${operation.summary}`));
  details.append(summary, make('p', operation.description || ''));
  const parameters = (operation.parameters || []).map(parameter =>
    `  ${parameter.name}${parameter.required ? '' : ' (optional)'}: ${describe(parameter.schema)}`);
  if (parameters.length) details.append(make('p', 'In the address', 'muted'), make('pre', parameters.join('\n')));
  const sections = [];
  for (const [type, content] of Object.entries(operation.requestBody?.content || {})) {
    sections.push([`Send ${type}`, content.schema]);
  }
  for (const [status, response] of Object.entries(operation.responses)) {
    if (status >= '300') continue;
    const contents = Object.entries(response.content || {});
    if (!contents.length) sections.push([`Answer ${status}, without a body`, null]);
    for (const [type, content] of contents) sections.push([`Answer ${status}, ${type}`, content.schema]);
  }
  for (const [title, schema] of sections) {
    details.append(make('p', title, 'muted'));
    if (schema) details.append(make('pre', bodyText(description, schema)));
  }
  return details;
};

const start = async () => {
  const target = document.getElementById('operations');
  try {
    const description = await (await fetch('openapi.json')).json();
    document.getElementById('about').textContent = description.info.description;
    const rooms = new Map();
    for (const [path, methods] of Object.entries(description.paths)) {
      for (const [method, operation] of Object.entries(methods)) {
        const tag = operation.tags[0];
        if (!rooms.has(tag)) rooms.set(tag, make('section'));
        rooms.get(tag).append(draw(description, method, description.servers[0].url + path, operation));
      }
    }
    target.textContent = '';
    for (const [tag, section] of rooms) {
      section.prepend(make('h2', tag));
      target.append(section);
    }
  } catch (error) {
    target.textContent = `The description could not be read (${error.message}). Reload the page.`;
  }
};

start();
