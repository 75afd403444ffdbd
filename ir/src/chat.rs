//! Conversations as the text that a chat model was trained on.
//!
//! Templates are written for Jinja under Python, with the settings and functions of Hugging Face's
//! `apply_chat_template`: blocks swallow the line ends and the indentation around them, strings have Python's methods,
//! and there are `raise_exception` and `strftime_now`.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value, context};

use crate::Error;
use crate::plan::ChatTemplate;

/// The text of a conversation that waits for the model's answer.
///
/// # Errors
/// [`Error::ChatTemplate`] where the template is none, or refuses the conversation.
pub fn render(template: &ChatTemplate, system: Option<&str>, user: &str) -> Result<String, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| {
        let now = jiff::fmt::strtime::format(&format, &jiff::ZonedDateTime::now());
        now.map_err(|error| minijinja::Error::new(ErrorKind::InvalidOperation, error.to_string()))
    });
    let message = |role: &str, content: &str| context! { role, content };
    let mut messages: Vec<Value> = system.into_iter().map(|content| message("system", content)).collect();
    messages.push(message("user", user));
    let tokens = template.tokens.iter().map(|(key, text)| (key.as_str(), text.as_str()));
    let values = context! {
        messages, add_generation_prompt => true, tools => (), documents => (), ..Value::from_pairs(tokens)
    };
    let rendered = environment.render_str(&template.source, values);
    rendered.map_err(failed)
}

/// The error, with the template's line where there is one.
// Its use as a function asks for this signature.
#[allow(clippy::needless_pass_by_value)]
fn failed(error: minijinja::Error) -> Error {
    let message = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    Error::ChatTemplate(error.line().map_or(message.clone(), |line| format!("line {line}: {message}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> ChatTemplate {
        let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
        let tokens = tokens.map(|(key, text)| (key.to_owned(), text.to_owned())).into();
        ChatTemplate { source: source.to_owned(), tokens }
    }

    #[test]
    fn blocks_swallow_their_lines_and_strings_have_methods() {
        let source = "{{ bos_token }}{% for message in messages %}\n    {% if message['role'] == 'user' %}\n\
                      [INST] {{ message['content'].strip() }} [/INST]\n    {% elif loop.first %}\n\
                      <<SYS>>{{ message.content | trim | upper }}<</SYS>>\n    {% endif %}\n{% endfor %}\n\
                      {% if add_generation_prompt and not tools %}{{ eos_token }}{% endif %}\n";
        let text = render(&template(source), Some(" be kind "), "  hello ").unwrap();
        assert_eq!(text, "<s><<SYS>>BE KIND<</SYS>>\n[INST] hello [/INST]\n</s>");
        let text = render(&template(source), None, "hi").unwrap();
        assert_eq!(text, "<s>[INST] hi [/INST]\n</s>");
    }

    /// The form of many models' templates: marks around each message, and a system prompt of their own.
    #[test]
    fn a_missing_system_prompt_is_the_templates_own() {
        let source = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
                      {{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}\
                      {{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
                      {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
        let end = "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n";
        let system = |text: &str| format!("<|im_start|>system\n{text}<|im_end|>\n{end}");
        assert_eq!(render(&template(source), None, "Hi?").unwrap(), system("Be kind"));
        assert_eq!(render(&template(source), Some("Be brief"), "Hi?").unwrap(), system("Be brief"));
    }

    #[test]
    fn a_template_may_refuse_and_ask_for_the_date() {
        let source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system prompt here') }}{% endif %}\
                      {{ strftime_now('%Y').startswith('2') }}";
        let error = render(&template(source), Some("x"), "y").unwrap_err();
        assert!(error.to_string().contains("no system prompt here"), "{error}");
        assert_eq!(render(&template(source), None, "y").unwrap().to_lowercase(), "true");
        let broken = render(&template("{% for %}"), None, "y").unwrap_err();
        assert!(broken.to_string().contains("line 1"), "{broken}");
    }
}
